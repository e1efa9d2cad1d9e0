"""Large pieces of pinned host memory, of exactly the size that was asked for.

torch's own pinned memory comes in powers of two, which is fine for staging: 100 GiB for keys and values would pin
128, more than was found to be free, and would stay pinned when nobody needs them any more.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airi.engine.arena import allocate_arena

if TYPE_CHECKING:
    import torch

__all__ = ["registered"]


def registered(num_bytes: int, device: torch.device) -> torch.Tensor:
    """uint8 [num_bytes] of zeroed host memory, pinned for as long as the tensor or a view of it lives.

    Raises RuntimeError where the system does not pin that much, and MemoryBudgetError.
    """
    import torch

    memory = allocate_arena(num_bytes)
    address, driver = memory.ctypes.data, torch.cuda.cudart()
    with torch.cuda.device(device):
        result = driver.cudaHostRegister(address, num_bytes, 0)
        try:
            torch.cuda.check_error(result)
        except RuntimeError:
            _forget_error(device)
            raise
    # Not when the process ends: the driver may be gone by then.
    weakref.finalize(memory, _unregister, driver, address, device).atexit = False
    return torch.from_numpy(memory)


def _forget_error(device: torch.device) -> None:
    """Has the driver's last error be told here: it would be taken for one of the next kernel that is launched."""
    import torch

    with suppress(RuntimeError):
        torch.ones(1, device=device)


def _unregister(driver: Any, address: int, device: torch.device) -> None:
    import torch

    with torch.cuda.device(device):
        driver.cudaHostUnregister(address)
