"""What the counts that penalties go by are made of, int32 per token of the vocabulary."""

IN_PROMPT = 1
"""The token is in the prompt."""
ONE_OUTPUT = 2
"""Added for each time that the token was generated."""
