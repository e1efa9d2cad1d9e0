"""What every command that runs a model says about where and how: the same flags, the same words."""

from __future__ import annotations

__all__ = [
    "DEVICE_FLAGS",
    "DEVICE_HELP",
    "DTYPE_HELP",
    "KV_CACHE_DTYPE_HELP",
    "QUANTIZATION_HELP",
    "TENSOR_PARALLEL_HELP",
]

DEVICE_FLAGS = ("device", "dtype", "kv_cache_dtype", "quantization", "tensor_parallel_size")

DEVICE_HELP = "Where to run: cpu, cuda (a GPU, ROCm's too), cuda:N, or auto: a GPU where there is one."
DTYPE_HELP = "auto (as the checkpoint says), float32, bfloat16 or float16, which on CPUs is bfloat16."
KV_CACHE_DTYPE_HELP = "What keys and values are stored as on a GPU: auto (the dtype), fp8 or int8."
QUANTIZATION_HELP = "What weights are quantised to on a GPU: fp8 or int8; left out: nothing."
TENSOR_PARALLEL_HELP = "How many GPUs share a model."
