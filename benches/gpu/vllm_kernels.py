"""vLLM's Triton attention out of a folder, without importing the rest of vLLM.

The folder is a checkout or an unpacked wheel. Its file is run as it is; the few modules of vLLM that it asks for, and
that would pull in everything else, are stand-ins which give what a plain CUDA device has.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

PLACES = ("v1/attention/ops/triton_unified_attention.py", "attention/ops/triton_unified_attention.py")
SEGMENTS = 16
"""Pieces that vLLM cuts a row's keys into when it splits them."""
_LEAST_PROGRAMS = 128
"""vLLM splits where rows times kv heads are fewer."""


class KVQuantMode(enum.IntEnum):
    """As the kernels' file names them."""

    NONE = 0
    FP8_PER_TENSOR = 1
    INT8_PER_TOKEN_HEAD = 2
    FP8_PER_TOKEN_HEAD = 3
    INT4_PER_TOKEN_HEAD = 4
    INT2_PER_TOKEN_HEAD = 5


class _Platform:
    """A CUDA device; whatever else is asked of it, it is not."""

    def fp8_dtype(self) -> torch.dtype:
        return torch.float8_e4m3fn

    def is_cuda(self) -> bool:
        return torch.version.hip is None

    def is_rocm(self) -> bool:
        return torch.version.hip is not None

    def is_cuda_alike(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Callable[..., bool]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_args, **_kwargs: False


class _Environment(types.ModuleType):
    """vllm.envs: every switch is off."""

    def __getattr__(self, name: str) -> bool:
        if name.startswith("__"):
            raise AttributeError(name)
        return False


class UnifiedAttention:
    """vLLM's launcher with the arguments that its version has."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._parameters = set(inspect.signature(function).parameters)

    def __call__(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        *,
        query_start: torch.Tensor,
        seq_lens: torch.Tensor,
        block_table: torch.Tensor,
        most_queries: int,
        most_keys: int,
        scale: float,
        segments: dict[str, Any],
    ) -> None:
        """q and out [tokens, q_heads, dim], keys and values [blocks, block_size, kv_heads, dim] of any strides."""
        wanted = {
            "q": q,
            "k": keys,
            "v": values,
            "out": out,
            "cu_seqlens_q": query_start,
            "max_seqlen_q": most_queries,
            "seqused_k": seq_lens,
            "max_seqlen_k": most_keys,
            "softmax_scale": scale,
            "causal": True,
            "window_size": (-1, -1),
            "block_table": block_table,
            "softcap": 0.0,
            "q_descale": None,
            "k_descale": None,
            "v_descale": None,
            **segments,
        }
        self._function(**{key: value for key, value in wanted.items() if key in self._parameters})


def segments_for(
    rows: int, kv_heads: int, q_heads: int, head_dim: int, device: torch.device
) -> dict[str, Any]:
    """The workspace for split keys, in the sizes that vLLM gives it; rows from its threshold on are not split."""
    threshold = _LEAST_PROGRAMS // kv_heads
    if rows > threshold:
        return {}
    padded = triton.next_power_of_2(head_dim)
    shape = (threshold, q_heads, SEGMENTS)
    return {
        "seq_threshold_3D": threshold,
        "num_par_softmax_segments": SEGMENTS,
        "softmax_segm_output": torch.empty((*shape, padded), device=device),
        "softmax_segm_max": torch.empty(shape, device=device),
        "softmax_segm_expsum": torch.empty(shape, device=device),
    }


def find(folder: Path) -> tuple[Path, str]:
    """The package's folder and the name of the module in it. Raises FileNotFoundError naming what was looked for."""
    for root in (folder / "vllm", folder):
        for place in PLACES:
            if (root / place).is_file():
                return root, "vllm." + place.removesuffix(".py").replace("/", ".")
    raise FileNotFoundError(f"{folder} holds none of {', '.join(f'vllm/{place}' for place in PLACES)}")


def load(folder: Path) -> UnifiedAttention:
    """Runs the file. Raises FileNotFoundError, or ImportError naming what it needs beyond the stand-ins.

    REQUIRES that vLLM itself is not imported in this process.
    """
    root, name = find(folder)
    for module in _stand_ins(root, name):
        sys.modules[module.__name__] = module
    module = importlib.import_module(name)
    return UnifiedAttention(module.unified_attention)


def _stand_ins(root: Path, name: str) -> list[types.ModuleType]:
    """Packages above the file as plain namespaces (their own __init__ files import vLLM), and what it asks for."""
    found: list[types.ModuleType] = []
    parts = name.split(".")[:-1]
    for i in range(len(parts)):
        package = types.ModuleType(".".join(parts[: i + 1]))
        package.__path__ = [str(root.joinpath(*parts[1 : i + 1]))]
        found.append(package)
    platforms = types.ModuleType("vllm.platforms")
    platforms.current_platform = _Platform()  # type: ignore[attr-defined]
    logger = types.ModuleType("vllm.logger")
    logger.init_logger = logging.getLogger  # type: ignore[attr-defined]
    utils = types.ModuleType("vllm.triton_utils")
    utils.tl, utils.triton, utils.HAS_TRITON = tl, triton, True  # type: ignore[attr-defined]
    cache = types.ModuleType("vllm.v1.kv_cache_interface")
    cache.KVQuantMode = KVQuantMode  # type: ignore[attr-defined]
    envs = _Environment("vllm.envs")
    found[0].envs = envs  # type: ignore[attr-defined]
    layers = [types.ModuleType(f"vllm.model_executor{part}") for part in ("", ".layers")]
    for package in layers:
        package.__path__ = []
    invariant = types.ModuleType("vllm.model_executor.layers.batch_invariant")
    invariant.vllm_is_batch_invariant = lambda: False  # type: ignore[attr-defined]
    return [*found, platforms, logger, utils, cache, envs, *layers, invariant]
