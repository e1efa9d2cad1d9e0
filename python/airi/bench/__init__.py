"""What `airi bench` measures; each module answers one question and can be called from Python."""
