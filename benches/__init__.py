"""Benches: one question per file, run as `python -m benches.bench_<question> --help`."""
