"""Whether there is a GPU that models can run on, and if not, what is missing.

Looks for a driver's files before it imports torch, so that machines without a GPU start as fast as ever.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

__all__ = ["AMD_ARCHITECTURES", "DRIVER_FILES", "has_driver", "obstacle"]

DRIVER_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Of NVIDIA's driver, of AMD's, and of either below WSL."""

_LEAST_CAPABILITY = (8, 0)
"""Of NVIDIA's: the first with bfloat16 and asynchronous copies to shared memory."""
AMD_ARCHITECTURES = ("gfx942",)
"""AMD's architectures that `airi.kernels.arch` knows."""


def has_driver() -> bool:
    """Whether a GPU's driver seems to be there."""
    return any(Path(path).exists() for path in DRIVER_FILES)


def obstacle(index: int, count: int = 1) -> str | None:
    """What keeps models from the `count` GPUs from `index` on: what was found and what to do; None: nothing."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return "torch is not installed; install a build for the GPU (https://pytorch.org/get-started)"
    version = torch.version
    if not (version.cuda or getattr(version, "hip", None)):
        return (
            f"torch {torch.__version__} is built without CUDA and ROCm; install a build for the GPU "
            "(https://pytorch.org/get-started)"
        )
    if not torch.cuda.is_available():
        if not has_driver():
            return f"no driver was found (none of {', '.join(DRIVER_FILES)}); install the GPU's driver"
        built = f"CUDA {version.cuda}" if version.cuda else f"ROCm {version.hip}"
        return (
            f"there is a driver, but torch {torch.__version__} for {built} finds no GPU; the driver may be too old for "
            "it, or CUDA_VISIBLE_DEVICES may hide what there is"
        )
    found = torch.cuda.device_count()
    if index + count > found:
        return f"there {'is 1 GPU' if found == 1 else f'are {found} GPUs'}, cuda:0 to cuda:{found - 1}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed, which the kernels need; install triton"
    return next(filter(None, (_unsupported(torch, i) for i in range(index, index + count))), None)


def _unsupported(torch: Any, index: int) -> str | None:
    """Why a GPU that is there has no kernels."""
    name = torch.cuda.get_device_name(index)
    if not torch.version.cuda:
        found = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return (
            None
            if found in AMD_ARCHITECTURES
            else f"{name} is {found}; accepted: {', '.join(AMD_ARCHITECTURES)}"
        )
    capability = torch.cuda.get_device_capability(index)
    if capability >= _LEAST_CAPABILITY:
        return None
    found, least = (".".join(map(str, version)) for version in (capability, _LEAST_CAPABILITY))
    return f"{name} has compute capability {found}; {least} is the least"
