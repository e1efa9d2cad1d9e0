"""Everything that a runtime is told, in a file, so that its decisions can be replayed elsewhere.

The file: a line of magic, then records, each a length (4 bytes, little-endian) and a msgpack array that starts with its
kind. Token ids are content, so they are never written: a random permutation, drawn when the file is opened and
written nowhere, stands in for them. Equal tokens stay equal, and prefixes with them, which is all that plans depend
on; who knows how often tokens occur can still guess some, so treat the file with care. Salts, hash keys and paths are
replaced too.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.errors import ConfigError

__all__ = ["MAGIC", "ModelSettings", "RecordingRuntime", "RuntimeSettings", "StepLog", "step_record"]

logger = logging.getLogger("airi.engine")

MAGIC = b"AIRI step log 1\n"
_BUFFER = 1 << 20
_INFO = (
    "step_id",
    "model",
    "buffer",
    "num_rows",
    "num_tokens",
    "num_deltas",
    "num_samples",
    "num_decodes",
    "num_prefill_tokens",
    "num_ops",
)
COLUMNS = {
    "request_ids": "num_rows",
    "slots": "num_rows",
    "query_start": "num_rows",
    "seq_lens": "num_rows",
    "row_flags": "num_rows",
    "draw_index": "num_rows",
    "tokens": "num_tokens",
    "positions": "num_tokens",
    "deltas": "num_deltas",
    "ops": "num_ops",
}
"""The arrays of a step, and what counts their entries (query_start has one more)."""


class RuntimeSettings(_core.RuntimeConfig):
    """A RuntimeConfig that remembers what it was made of."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.settings = settings


class ModelSettings(_core.ModelConfig):
    """A ModelConfig that remembers what it was made of, and for tokens below which number."""

    def __init__(self, vocab_size: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.vocab_size = vocab_size
        self.settings = settings


class _Writer:
    """A file that is written to in large pieces; the first write that fails ends it, said once."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115  # lives as long as this
        self._held = bytearray()

    def write(self, data: bytes) -> None:
        if self._file.closed:
            return
        self._held += data
        if len(self._held) >= _BUFFER:
            self.flush()

    def flush(self) -> None:
        try:
            while self._held and not self._file.closed:
                del self._held[: self._file.write(self._held)]
        except OSError as error:
            logger.error("steps are no longer recorded: %s", error.strerror or error)
            self._file.close()

    def close(self) -> None:
        self.flush()
        self._file.close()


class StepLog:
    """A file of records, written about a mebibyte at a time, and whenever the engine has nothing to do.

    A write that fails ends the log and is said once; nothing else ends with it. *Thread safety*: none.
    """

    def __init__(self, path: str, vocab_size: int) -> None:
        """Creates the file; raises ConfigError. Tokens are below `vocab_size`."""
        try:
            self._writer = _Writer(path)
        except OSError as error:
            raise ConfigError(
                f"record_steps {path}: {error.strerror or error}", field="record_steps"
            ) from None
        self.close = weakref.finalize(self, self._writer.close)
        """Ends the file, as the end of the process does; later records are dropped."""
        import msgspec  # only who records needs it

        self._encode = msgspec.msgpack.Encoder().encode
        # The last one is what index -1 finds: a token that is still being computed stays one.
        self._substitutes = np.array([-1], np.int32)
        self.grow(vocab_size)
        self._salt_key = secrets.token_bytes(32)
        self._writer.write(MAGIC)

    def grow(self, vocab_size: int) -> None:
        """Prepares for tokens below `vocab_size`, whose substitutes must be found among the new ones."""
        known = len(self._substitutes) - 1
        more = list(range(known, vocab_size))
        secrets.SystemRandom().shuffle(more)
        self._substitutes = np.array([*self._substitutes[:-1], *more, -1], np.int32)

    def write(self, *record: object) -> None:
        """Appends a record."""
        data = self._encode(record)
        self._writer.write(len(data).to_bytes(4, "little") + data)

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._writer.flush()

    def substitute(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """What stands for these tokens in the file."""
        known = len(self._substitutes) - 1
        # An end-of-sequence id beyond the vocabulary is never sampled.
        return np.where(tokens < known, self._substitutes[np.minimum(tokens, known)], tokens)

    def substitute_salt(self, salt: bytes) -> bytes:
        """What stands for a salt."""
        return hashlib.blake2b(salt, key=self._salt_key, digest_size=16).digest()


class RecordingRuntime(_core.Runtime):
    """A Runtime that writes what it is told, and digests of what it plans, to a log.

    Every method that plans depend on is overridden here. *Thread safety*: as the runtime's; calls are
    serialised, so that the log has their order.
    """

    def __init__(
        self,
        log: StepLog,
        config: RuntimeSettings,
        models: Sequence[ModelSettings],
        buffers: Sequence[_core.StepBuffers],
    ) -> None:
        super().__init__(config, models, buffers)
        self._log = log
        self._buffers = list(buffers)
        self._lock = threading.Lock()
        hidden = {"hash_key": bytes(16)}
        settings = [_hidden_seed(model, i) for i, model in enumerate(models)]
        log.write("config", config.settings | hidden, settings, len(self._buffers), _shapes(buffers))

    def submit(self, *, tokens: NDArray[np.int32], **spec: Any) -> _core.Admit:
        """As Runtime.submit."""
        with self._lock:
            admit = super().submit(tokens=tokens, **spec)
            log = self._log
            stop_ids = spec.pop("stop_ids", None)
            ids = b"" if stop_ids is None else log.substitute(stop_ids).tobytes()
            spec["salts"] = [(at, log.substitute_salt(salt)) for at, salt in spec.get("salts", ())]
            log.write("submit", spec, log.substitute(tokens).tobytes(), ids, int(admit))
        return admit

    def cancel(self, request_id: int) -> bool:
        """As Runtime.cancel."""
        with self._lock:
            found = super().cancel(request_id)
            self._log.write("cancel", request_id, found)
        return found

    def complete_transfers(
        self, ids: NDArray[np.int64], ok: NDArray[np.bool_], micros: NDArray[np.int64]
    ) -> None:
        """As Runtime.complete_transfers."""
        with self._lock:
            super().complete_transfers(ids, ok, micros)
            self._log.write("complete_transfers", ids.tobytes(), ok.tobytes(), micros.tobytes())

    def set_tenant(self, tenant: int, weight: float) -> None:
        """As Runtime.set_tenant."""
        with self._lock:
            super().set_tenant(tenant, weight)
            self._log.write("set_tenant", tenant, weight)

    def set_kv_quota(self, tenant: int, model: int, blocks: int) -> None:
        """As Runtime.set_kv_quota."""
        with self._lock:
            super().set_kv_quota(tenant, model, blocks)
            self._log.write("set_kv_quota", tenant, model, blocks)

    def observe_step(self, model: int, work: tuple[int, int, int, float], micros: float) -> None:
        """As Runtime.observe_step."""
        with self._lock:
            super().observe_step(model, work, micros)
            self._log.write("observe_step", model, work, micros)

    def add_model(self, model: _core.ModelConfig) -> int:
        """As Runtime.add_model, for a ModelSettings."""
        if not isinstance(model, ModelSettings):
            raise TypeError(
                f"model must be a ModelSettings where steps are recorded, got {type(model).__name__}"
            )
        with self._lock:
            index = super().add_model(model)
            self._log.grow(model.vocab_size)
            self._log.write("add_model", _hidden_seed(model, index), index)
        return index

    def remove_model(self, model: int, *, drains: bool = False) -> None:
        """As Runtime.remove_model."""
        with self._lock:
            super().remove_model(model, drains=drains)
            self._log.write("remove_model", model, drains)

    def sleep(self, model: int) -> None:
        """As Runtime.sleep."""
        with self._lock:
            super().sleep(model)
            self._log.write("sleep", model)

    def wake(self, model: int) -> None:
        """As Runtime.wake."""
        with self._lock:
            super().wake(model)
            self._log.write("wake", model)

    def confirm_moved(self, model: int) -> None:
        """As Runtime.confirm_moved."""
        with self._lock:
            super().confirm_moved(model)
            self._log.write("confirm_moved", model)

    def replace_buffers(self, buffers: Sequence[_core.StepBuffers]) -> None:
        """As Runtime.replace_buffers."""
        with self._lock:
            super().replace_buffers(buffers)
            self._buffers = list(buffers)
            self._log.write("replace_buffers", len(self._buffers), _shapes(buffers))

    def step(self, now_us: int) -> _core.StepInfo | None:
        """As Runtime.step."""
        with self._lock:
            info = super().step(now_us)
            if info is None:
                self._log.write("step", now_us, None, None)
                self._log.flush()
            else:
                self._log.write("step", now_us, *step_record(info, self._buffers, self._log.substitute))
        return info

    def commit(
        self,
        step_id: int,
        tokens: NDArray[np.int32],
        counts: NDArray[np.int32],
        status: NDArray[np.uint8],
        device_us: int,
    ) -> None:
        """As Runtime.commit."""
        with self._lock:
            super().commit(step_id, tokens, counts, status, device_us)
            substitutes = self._log.substitute(tokens).tobytes()
            self._log.write(
                "commit", step_id, substitutes, counts.tobytes(), np.asarray(status).tobytes(), device_us
            )


def step_record(
    info: _core.StepInfo, buffers: Sequence[_core.StepBuffers], substitute: Any = None
) -> tuple[dict[str, int], dict[str, bytes]]:
    """The counts of a planned step, and a digest of each of its arrays."""
    arrays = buffers[info.buffer]
    digests = {}
    for name, count in COLUMNS.items():
        used = getattr(info, count) + (name == "query_start")
        column = getattr(arrays, name)[:used]
        if name == "tokens" and substitute is not None:
            column = substitute(column)
        digests[name] = hashlib.blake2b(column.tobytes(), digest_size=8).digest()
    return {name: getattr(info, name) for name in _INFO}, digests


def _hidden_seed(model: ModelSettings, index: int) -> dict[str, Any]:
    """What the model was made of, but for the path in its seed."""
    return model.settings | {"hash_seed": b"model %d" % index}


def _shapes(buffers: Sequence[_core.StepBuffers]) -> dict[str, tuple[list[int], str]]:
    return {name: _shape(getattr(buffers[0], name)) for name in COLUMNS}


def _shape(array: NDArray[Any]) -> tuple[list[int], str]:
    return list(array.shape), array.dtype.str
