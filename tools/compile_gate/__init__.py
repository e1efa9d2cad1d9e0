"""Proves without a GPU that every kernel configuration that ships compiles well for each architecture.

`python -m tools.compile_gate` compiles the table of `airi.kernels.shipped`, reads the machine code, and fails on
register spills, narrow loads, byte-wise unpacking, too much shared memory and matrix units left unused.
"""
