"""Collections over HTTP: what is found, what prompts are made of it, and the rows that are written."""
