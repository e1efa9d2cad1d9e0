"""The bound of the tenant ledger, measured on a runtime while it runs under virtual time."""

from __future__ import annotations

import numpy as np

from airi import _core
from benches.virtual_airi import AiriScheduler
from benches.virtual_time import Ints, Trace, Work

_UNIT = 1 << 20
"""Of tenant_counter: one unit of service at weight 1."""


class LedgerWatch:
    """A scheduler that watches another: how far the counters of waiting tenants come apart, against I.

    I is the most that a tenant can have been granted at one dispatch: the charge of the prompts that the step
    dispatches for it and what its running requests may still generate. Requests that were preempted count as running.
    """

    def __init__(self, inner: AiriScheduler, trace: Trace, *, w_prompt: int = 1, w_decode: int = 2) -> None:
        self._inner, self._trace = inner, trace
        self._w_prompt, self._w_decode = w_prompt, w_decode
        tenants = int(trace.tenant.max()) + 1
        self._waiting = np.zeros(tenants, np.int64)
        self._to_generate = np.zeros(tenants, np.int64)  # of running requests
        self._prompt_len = trace.prompt_len
        self._dispatched = np.zeros(len(trace), np.bool_)
        self._charges = np.zeros(tenants, np.int64)  # of the step planned last
        self.gap = 0.0
        """The largest distance between counters of waiting tenants."""
        self.bound = 0.0
        """I."""
        self.step_charge = 0.0
        """The most that one step charged a tenant."""

    @property
    def cached(self) -> Ints:
        return self._inner.cached

    @property
    def preemptions(self) -> int:
        return self._inner.preemptions

    def submit(self, index: int) -> None:
        self._inner.submit(index)
        self._waiting[self._trace.tenant[index]] += 1

    def plan(self, now_us: int) -> Work | None:
        work = self._inner.plan(now_us)
        if work is not None:
            self._count_dispatches()
            self._compare()
        return work

    def commit(self, device_us: int) -> Ints:
        emitted = self._inner.commit(device_us)
        np.add.at(self._charges, self._trace.tenant[emitted], self._w_decode)
        self.step_charge = max(self.step_charge, float(self._charges.max()))
        np.subtract.at(self._to_generate, self._trace.tenant[emitted], 1)
        return emitted

    def _count_dispatches(self) -> None:
        self._charges[:] = 0
        ids, flags, computed = self._inner.planned_rows()
        first = (flags & _core.ROW_FIRST) != 0
        charged = first & ~self._dispatched[ids]  # a request that comes back is not charged again
        self._dispatched[ids[charged]] = True
        new, again = ids[charged], ids[first & ~charged]
        if not len(new) and not len(again):
            return
        tenants = self._trace.tenant[new]
        np.add.at(self._charges, tenants, self._w_prompt * (self._prompt_len[new] - computed[charged]))
        np.subtract.at(self._waiting, tenants, 1)
        np.add.at(self._to_generate, tenants, self._trace.max_tokens[new])
        granted = self._w_decode * self._to_generate + self._charges
        served = np.concatenate([tenants, self._trace.tenant[again]])
        self.bound = max(self.bound, float(granted[served].max()))

    def _compare(self) -> None:
        backlogged = np.flatnonzero(self._waiting)
        counters = [self._inner.runtime.tenant_counter(0, 0, int(tenant)) for tenant in backlogged]
        known = [counter for counter in counters if counter is not None]
        if len(known) > 1:
            self.gap = max(self.gap, (max(known) - min(known)) / _UNIT)
