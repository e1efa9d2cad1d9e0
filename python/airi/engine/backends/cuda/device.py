"""A device as the engine sees it: memory, pinned staging, one stream in order, a second one, events, graphs.

`CudaDevice` is what torch calls "cuda", which is ROCm as well. `CpuDevice` does the same in host memory, at once and
in order, so that all of the control flow runs where there is no device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ReferenceType, ref

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends.cuda.pinned import registered

if TYPE_CHECKING:
    import torch

__all__ = ["CpuDevice", "CudaDevice", "Device", "Event", "Graph"]

_LARGE = 64 * 2**20
"""Pinned memory of so many bytes is the system's: torch would take up to twice as much, and keep it for good."""


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Returns when the work before it is done; sleeps meanwhile, without the GIL."""
        ...

    def is_done(self) -> bool:
        """Whether the work before it is done."""
        ...

    def micros_since(self, earlier: Event) -> float:
        """Device time between two events that are done."""
        ...


class Graph(Protocol):
    """Captured work on fixed buffers."""

    def replay(self) -> None:
        """Enqueues it once more on the current stream."""
        ...


class Device(Protocol):
    """One device. *Thread safety*: `active` is per thread; events may be waited for in any thread."""

    @property
    def torch_device(self) -> torch.device:
        """Where tensors go."""
        ...

    @property
    def description(self) -> str:
        """For people: "cuda:0 (NVIDIA H200)"."""
        ...

    @property
    def is_host(self) -> bool:
        """Whether this is the host in a device's place."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """Has what is enqueued in this thread run on this device, in the engine's stream, without gradients."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """As `active`, in the second stream, which copies between device and host memory."""
        ...

    def zeros(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes] on the device, aligned to 64 bytes at least; raises torch.OutOfMemoryError."""
        ...

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes] of zeroed host memory that copies to and from the device need not wait for."""
        ...

    def upload(self, array: NDArray[Any]) -> torch.Tensor:
        """A copy on the device of an array that may change as soon as this returns; for rare work in steps."""
        ...

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in pinned host memory, whole once an event that is recorded after this is done."""
        ...

    def record(self) -> Event:
        """An event after all that was enqueued in the current stream so far."""
        ...

    def wait(self, event: Event) -> None:
        """Has what is enqueued from now on in the current stream run after the event."""
        ...

    def capture(self, work: Callable[[], object]) -> Graph:
        """Captures what `work` enqueues, on buffers that stay where they are. `work` ran at least once before."""
        ...

    def synchronize(self) -> None:
        """Waits for everything that was enqueued; never in a step."""
        ...

    def give_back(self) -> None:
        """Returns memory that nothing uses any more to the system, rather than keep it for what comes."""
        ...

    def memory(self) -> tuple[int, int]:
        """(bytes free, bytes in total), what torch keeps for anybody's tensors counted as free."""
        ...


class CudaDevice:
    """A device of torch's "cuda": NVIDIA or, through ROCm, AMD."""

    is_host = False

    def __init__(self, index: int = 0) -> None:
        import torch

        self.torch_device = torch.device("cuda", index)
        self.description = f"cuda:{index} ({torch.cuda.get_device_name(index)})"
        self._steps = torch.cuda.Stream(self.torch_device)
        self._copies = torch.cuda.Stream(self.torch_device)
        self._pool: ReferenceType[_Pool] | None = None
        """Of the graphs that there are."""

    def active(self) -> AbstractContextManager[None]:
        """As `Device.active`."""
        return self._in(self._steps)

    def aside(self) -> AbstractContextManager[None]:
        """As `Device.aside`."""
        return self._in(self._copies)

    @contextmanager
    def _in(self, stream: Any) -> Iterator[None]:
        import torch

        with torch.inference_mode(), torch.cuda.stream(stream):
            yield

    def zeros(self, num_bytes: int) -> torch.Tensor:
        """As `Device.zeros`."""
        import torch

        with torch.inference_mode(mode=False):  # which is no property of memory
            return torch.zeros(num_bytes, dtype=torch.uint8, device=self.torch_device)

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """As `Device.pinned`."""
        import torch

        if num_bytes >= _LARGE:
            return registered(num_bytes, self.torch_device)
        return torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=True)

    def upload(self, array: NDArray[Any]) -> torch.Tensor:
        """As `Device.upload`: torch keeps its pinned memory for the next one once the copy is over."""
        import torch

        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        host = torch.empty(array.shape, dtype=dtype, pin_memory=True)
        host.numpy()[...] = array
        return host.to(self.torch_device, non_blocking=True)

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `Device.download`."""
        import torch

        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def record(self) -> Event:
        """As `Device.record`."""
        import torch

        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record()
        return _CudaEvent(event, self.torch_device)

    def wait(self, event: Event) -> None:
        """As `Device.wait`."""
        import torch

        if isinstance(event, _CudaEvent):
            torch.cuda.current_stream(self.torch_device).wait_event(event.event)

    def capture(self, work: Callable[[], object]) -> Graph:
        """As `Device.capture`."""
        import torch

        pool = None if self._pool is None else self._pool()
        if pool is None:  # torch refuses to capture into what the last graph has left
            pool = _Pool(torch.cuda.graph_pool_handle())
            self._pool = ref(pool)
        graph = torch.cuda.CUDAGraph()
        # In the stream of the steps, for which libraries have their workspaces already: in another one they would
        # take further ones, of the graphs' memory and for good. Other threads wait for events of steps and copies
        # meanwhile, which is none of the capture's business.
        try:
            with torch.cuda.graph(
                graph, pool=pool.handle, stream=self._steps, capture_error_mode="thread_local"
            ):
                work()
        except BaseException:
            self._pool = None  # torch may count this one as being captured into, for good
            raise
        return _CudaGraph(graph, pool)

    def synchronize(self) -> None:
        """As `Device.synchronize`."""
        import torch

        torch.cuda.synchronize(self.torch_device)

    def give_back(self) -> None:
        """As `Device.give_back`."""
        import torch

        torch.cuda.empty_cache()

    def memory(self) -> tuple[int, int]:
        """As `Device.memory`."""
        import torch

        free, total = torch.cuda.mem_get_info(self.torch_device)
        kept = torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        # What is free in the graphs' memory is so for further graphs alone.
        of_graphs = sum(
            segment["total_size"] - segment["allocated_size"]
            for segment in torch.cuda.memory_snapshot()
            if segment["device"] == self.torch_device.index and tuple(segment["segment_pool_id"]) != (0, 0)
        )
        return free + kept - of_graphs, total


class _Pool:
    """Memory that graphs share, for as long as there is one of them."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle


class _CudaGraph:
    def __init__(self, graph: Any, pool: _Pool) -> None:
        self._graph, self._pool = graph, pool

    def replay(self) -> None:
        self._graph.replay()


class _CudaEvent:
    def __init__(self, event: Any, device: torch.device) -> None:
        self.event = event
        self._device = device

    def synchronize(self) -> None:
        import torch

        # Threads begin with the first device, where waiting for another's event would take memory for a context.
        with torch.cuda.device(self._device):
            self.event.synchronize()

    def is_done(self) -> bool:
        import torch

        with torch.cuda.device(self._device):
            return bool(self.event.query())

    def micros_since(self, earlier: Event) -> float:
        if not isinstance(earlier, _CudaEvent):
            raise TypeError("the events are of different devices")
        return float(earlier.event.elapsed_time(self.event)) * 1e3


class CpuDevice:
    """The host in a device's place: every call is done when it returns."""

    is_host = True
    description = "cpu"

    def __init__(self) -> None:
        import torch

        self.torch_device = torch.device("cpu")

    @contextmanager
    def active(self) -> Iterator[None]:
        """As `Device.active`."""
        import torch

        with torch.inference_mode():
            yield

    def aside(self) -> AbstractContextManager[None]:
        """As `Device.aside`."""
        return self.active()

    def zeros(self, num_bytes: int) -> torch.Tensor:
        """As `Device.zeros`."""
        import torch

        with torch.inference_mode(mode=False):
            return torch.zeros(num_bytes, dtype=torch.uint8)

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """As `Device.pinned`."""
        return self.zeros(num_bytes)

    def upload(self, array: NDArray[Any]) -> torch.Tensor:
        """As `Device.upload`."""
        import torch

        return torch.from_numpy(array.copy())

    def download(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `Device.download`."""
        return tensor.clone()

    def record(self) -> Event:
        """As `Device.record`."""
        return _CpuEvent()

    def wait(self, event: Event) -> None:
        """As `Device.wait`."""

    def capture(self, work: Callable[[], object]) -> Graph:
        """As `Device.capture`: the work is called again, on the same buffers."""
        return _CpuGraph(work)

    def synchronize(self) -> None:
        """As `Device.synchronize`."""

    def give_back(self) -> None:
        """As `Device.give_back`."""

    def memory(self) -> tuple[int, int]:
        """As `Device.memory`."""
        from airi.engine.resources import available_memory

        free = available_memory()
        return free, free


class _CpuEvent:
    def __init__(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def is_done(self) -> bool:
        return True

    def micros_since(self, earlier: Event) -> float:
        if not isinstance(earlier, _CpuEvent):
            raise TypeError("the events are of different devices")
        return (self.at - earlier.at) * 1e6


class _CpuGraph:
    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work

    def replay(self) -> None:
        self._work()
