"""Attention over paged memory: `reference` is the specification that every kernel is tested against."""
