"""Searching in memory: matrices, exact search, graphs, the choice between them, and what joins several rankings."""
