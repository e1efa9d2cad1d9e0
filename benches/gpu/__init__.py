"""Kernels and the engine on a GPU: what is right, how fast, against which limit. `python -m benches.gpu.run --help`."""
