"""What a call to an upstream may end with. No message has anything of a prompt, an answer or a key."""

from __future__ import annotations

from airi.errors import AiriError

__all__ = ["UpstreamError", "UpstreamRefusal"]


class UpstreamError(AiriError):
    """An upstream did not answer as it should: it is down, busy, too slow, or says what nobody can read."""

    code = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        outcome: str,
        retry: bool = False,
        retry_after_s: float | None = None,
        counts: bool = True,
    ) -> None:
        """`status`: of the answer that says so. `outcome`: one word, for metrics.

        `retry`: nothing of an answer had come, so the same may be asked again, once `retry_after_s` is over. `counts`:
        as a failure, for the circuit breaker.
        """
        super().__init__(message)
        self.status, self.outcome = status, outcome
        self.retry, self.retry_after_s, self.counts = retry, retry_after_s, counts


class UpstreamRefusal(AiriError):
    """An upstream cannot accept one request; it says why. It is fine itself."""

    code = "upstream_refused"

    def __init__(self, message: str, *, status: int, param: str | None, error_code: str | None) -> None:
        super().__init__(message)
        self.status, self.param, self.error_code = status, param, error_code
