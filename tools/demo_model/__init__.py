"""Builds the demonstration model: generated dialogues, tokenizer, training, evaluation."""
