"""The widest that kernels take, for who asks before there is a tensor; without Triton."""

from __future__ import annotations

MAX_HIDDEN = 16384
"""Columns of a norm, which one program holds in registers."""
MAX_EXPERTS = 1024
"""Experts that tokens are routed to: one block of a program has a place for each."""
MAX_VOCAB = 524288
"""Columns of logits that a token is sampled from."""
