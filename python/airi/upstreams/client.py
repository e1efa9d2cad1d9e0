"""One upstream over HTTP: a call is a stream of chunks, or one error that says what is wrong. It never hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Final, Protocol

import aiohttp

from airi.upstreams.breaker import CircuitBreaker, CircuitState, Permit
from airi.upstreams.chunks import Chunk, read_chunk
from airi.upstreams.errors import UpstreamError, UpstreamRefusal
from airi.upstreams.events import EventReader, EventTooLargeError
from airi.upstreams.options import UpstreamOptions
from airi.upstreams.refusals import MOST_ERROR_BYTES, told
from airi.upstreams.retries import LONGEST_WAIT_S, Attempt, backoff_s, retry_after_s

__all__ = ["MOST_ANSWER_BYTES", "Observer", "UpstreamClient"]

log = logging.getLogger("airi.upstreams")

MOST_ANSWER_BYTES: Final = 64 << 20
"""Of one answer, as it comes: a stream that goes on and on is ended."""
_END_S: Final = 0.2
_DONE: Final = b"[DONE]"
_ASK_AGAIN: Final = (502, 503, 504)
_REFUSED: Final = (400, 413, 422)
"""What a request itself is wrong for."""
_OF_OURS: Final = {
    401: "it does not accept this server's key",
    403: "it does not let this server's key do that",
    404: "it has no such model or path",
}


class Observer(Protocol):
    """Is told how attempts end."""

    def attempted(self, outcome: str) -> None:
        """An attempt has ended: ok, refused, connect, timeout, busy, status, garbage, broken, too_large, cancelled."""
        ...

    def retried(self) -> None:
        """The same is asked again."""
        ...


class UpstreamClient:
    """Calls one model of one upstream, retries what is safe, and leaves it alone while it fails.

    *Thread safety*: none; the event loop that called `open`.
    *Invariant*: once a chunk has been taken nothing is asked again; every response is closed when its call ends.
    """

    def __init__(self, options: UpstreamOptions, observer: Observer) -> None:
        self.options = options
        self.breaker = CircuitBreaker(failures=options.breaker_failures, open_s=options.breaker_open_s)
        self.is_healthy: bool | None = None
        """What the last look said; None before the first."""
        self.calls: set[Callable[[Exception], object]] = set()
        """Ends of calls that run, each with an error."""
        self._observer = observer
        self._session: aiohttp.ClientSession | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether a call may well be answered."""
        return self.is_healthy is not False and self.breaker.state is not CircuitState.OPEN

    async def open(self) -> None:
        """Begins to look after the upstream's health. Nothing is awaited of the upstream itself."""
        timeout = aiohttp.ClientTimeout(total=None, connect=self.options.connect_timeout_s)
        headers = {"user-agent": "airi", "accept-encoding": "identity"}
        if self.options.api_key is not None:
            headers["authorization"] = f"Bearer {self.options.api_key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # limits are the gateway's
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers=headers,
            timeout=timeout,
        )
        self._watcher = asyncio.create_task(self._watch())

    def give_up(self, error: Exception) -> None:
        """Ends the calls that run: the server ends."""
        for end in list(self.calls):
            end(error)

    async def close(self) -> None:
        """Ends its connections."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def ask(
        self,
        path: str,
        body: bytes,
        *,
        headers: Sequence[tuple[str, str]] = (),
        attempts: list[Attempt],
        take: Callable[[Chunk], None],
        is_whole: Callable[[], bool],
    ) -> None:
        """Gives `take` the chunks of an answer; `path` is below the base URL. Raises UpstreamError, UpstreamRefusal.

        `headers` go along. `attempts` gets an entry for each as it ends.
        `take` raises what `broken` makes for chunks that do not go together; `is_whole`: whether nothing is missing.
        Whoever needs no more of it cancels, which closes the connection.
        """
        deadline = asyncio.get_running_loop().time() + self.options.timeout_s
        response, first_by, permit = await self._begin(path, body, headers, deadline, attempts)
        outcome, problem, has_begun = "cancelled", "", False
        try:
            async for chunk in self._chunks(response, first_by, deadline):
                take(chunk)
                if not has_begun:
                    has_begun = True
                    self.breaker.began()
            if not has_begun:
                raise self._error("ended its answer before it began", 502, "broken")
            if not is_whole():
                raise self._error("ended its answer in the middle", 502, "broken")
            outcome = "ok"
            self.breaker.succeeded()
        except UpstreamError as error:
            outcome, problem = error.outcome, str(error)
            if is_whole():
                self.breaker.succeeded()  # what goes wrong behind an answer is nobody's concern
            else:
                self._count(error, permit)
            raise
        except Exception as error:  # of `take`
            outcome, problem = "garbage", type(error).__name__
            self.breaker.failed(permit)
            raise
        finally:
            # One that was read to its end has given its connection back already.
            response.close()
            if outcome == "cancelled":
                self.breaker.abandoned(permit)
            self._observer.attempted(outcome)
            attempts.append(Attempt(outcome, problem))

    # -- asking --------------------------------------------------------------------------------

    async def _begin(
        self,
        path: str,
        body: bytes,
        headers: Sequence[tuple[str, str]],
        deadline: float,
        attempts: list[Attempt],
    ) -> tuple[aiohttp.ClientResponse, float, Permit]:
        """A response whose stream may begin, until when its first event is waited for, and what let it through."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            permit = self.breaker.allow()
            if permit is None:
                after = max(1.0, self.breaker.remaining_s)
                what = "is left alone for now: it has failed again and again"
                raise self._error(what, 503, "open", retry_after_s=after, counts=False)
            first_by = min(deadline, loop.time() + self.options.first_token_timeout_s)
            try:
                return await self._attempt(path, body, headers, first_by), first_by, permit
            except UpstreamError as error:
                self._count(error, permit)
                self._observer.attempted(error.outcome)
                attempts.append(Attempt(error.outcome, str(error)))
                wait = error.retry_after_s if error.retry_after_s is not None else backoff_s(attempt)
                if not error.retry or attempt >= self.options.max_retries or wait > LONGEST_WAIT_S:
                    raise
                if loop.time() + wait >= deadline:
                    raise
            except UpstreamRefusal:
                self.breaker.succeeded()
                self._observer.attempted("refused")
                attempts.append(Attempt("refused"))
                raise
            except BaseException:
                self.breaker.abandoned(permit)
                self._observer.attempted("cancelled")
                raise
            attempt += 1
            attempts[-1] = attempts[-1]._replace(waited_s=wait)
            await asyncio.sleep(wait)
            self._observer.retried()

    async def _attempt(
        self, path: str, body: bytes, headers: Sequence[tuple[str, str]], first_by: float
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the client is not open")
        url = self.options.base_url.rstrip("/") + path
        sent = [("content-type", "application/json"), ("accept", "text/event-stream"), *headers]
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout_at(first_by):
                with self._failures(has_begun=False):
                    response = await self._session.post(url, data=body, headers=sent, allow_redirects=False)
                if response.status != 200:
                    raise await self._refusal(response)
            self._check_kind(response)
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, TimeoutError):
                raise self._late("its answer to begin") from None
            raise
        return response

    def _check_kind(self, response: aiohttp.ClientResponse) -> None:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            raise self._error("answers with something else than a stream of events", 502, "garbage")
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise self._error("answers in an encoding that it was not asked for", 502, "garbage")

    async def _refusal(self, response: aiohttp.ClientResponse) -> UpstreamError | UpstreamRefusal:
        """What a status other than 200 comes to."""
        status = response.status
        if status in _REFUSED:
            return await self._request_refused(response)
        after = retry_after_s(response.headers)
        if status == 429:
            return self._error("is at its limit", 503, "busy", retry=True, retry_after_s=after, counts=False)
        if status in _ASK_AGAIN:
            return self._error(
                f"answers with status {status}", 502, "status", retry=True, retry_after_s=after
            )
        reason = _OF_OURS.get(status)
        what = f"answers with status {status}" + (f": {reason}" if reason else "")
        return self._error(what, 502, "status", counts=status >= 500)

    async def _request_refused(self, response: aiohttp.ClientResponse) -> UpstreamRefusal:
        data = b""
        with self._failures(has_begun=True):
            async for part in response.content.iter_any():
                data += part
                if len(data) > MOST_ERROR_BYTES:
                    break
        message, param, code = told(data, self.options.api_key)
        status = 413 if response.status == 413 else 400
        what = f"the upstream of {self.options.name} refuses the request: {message or 'it does not say why'}"
        return UpstreamRefusal(what, status=status, param=param, error_code=code)

    # -- reading -------------------------------------------------------------------------------

    async def _chunks(
        self, response: aiohttp.ClientResponse, first_by: float, deadline: float
    ) -> AsyncIterator[Chunk]:
        loop = asyncio.get_running_loop()
        reader, size, by = EventReader(), 0, first_by
        what = "its first event"
        while True:
            try:
                async with asyncio.timeout_at(by):
                    with self._failures(has_begun=True):
                        part = await response.content.readany()
            except TimeoutError:
                raise self._late("its answer to end" if by >= deadline else what) from None
            if not part:
                return
            size += len(part)
            if size > MOST_ANSWER_BYTES:
                raise self._too_large()
            try:
                events = reader.push(part)
            except EventTooLargeError:
                raise self._too_large() from None
            for event in events:
                if event.strip() == _DONE:
                    await self._rest(response)
                    return
                yield self._read(event)
            if events:
                by, what = min(deadline, loop.time() + self.options.idle_timeout_s), "its next event"

    async def _rest(self, response: aiohttp.ClientResponse) -> None:
        """Waits a little for the end of the body, with which the connection can serve the next call."""
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, ConnectionError):
            async with asyncio.timeout(_END_S):
                await response.content.readany()

    def _read(self, event: bytes) -> Chunk:
        try:
            chunk = read_chunk(event)
        except ValueError:
            raise self._error("sends events that are no chunks of an answer", 502, "garbage") from None
        if chunk.error is not None:
            raise self._error("ended its answer with an error", 502, "broken")
        return chunk

    # -- what goes wrong -----------------------------------------------------------------------

    def _count(self, error: UpstreamError, permit: Permit) -> None:
        if error.counts:
            self.breaker.failed(permit)
        else:
            self.breaker.abandoned(permit)

    def _error(
        self,
        what: str,
        status: int,
        outcome: str,
        *,
        retry: bool = False,
        retry_after_s: float | None = None,
        counts: bool = True,
    ) -> UpstreamError:
        return UpstreamError(
            f"the upstream of {self.options.name} {what}",
            status=status,
            outcome=outcome,
            retry=retry,
            retry_after_s=retry_after_s,
            counts=counts,
        )

    def broken(self, what: str) -> UpstreamError:
        """What whoever takes chunks raises for those that do not go together; it counts as any other failure."""
        return self._error(what, 502, "garbage")

    def _late(self, what: str) -> UpstreamError:
        return self._error(f"took too long for {what}", 504, "timeout")

    def _too_large(self) -> UpstreamError:
        return self._error("sends more than an answer can be", 502, "too_large")

    @contextlib.contextmanager
    def _failures(self, *, has_begun: bool) -> Iterator[None]:
        """Within it, what the HTTP client raises is raised as UpstreamError."""
        try:
            yield
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise self._error(_unreached(error), 502, "connect", retry=True) from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError):
            # Before anything of an answer: such as a kept connection that the upstream closed at that moment.
            ended = (
                "ended its answer in the middle" if has_begun else "closed the connection without an answer"
            )
            raise self._error(ended, 502, "broken", retry=not has_begun) from None
        except aiohttp.ClientPayloadError:
            raise self._error("ended its answer in the middle", 502, "broken") from None
        except (aiohttp.ClientError, ValueError):
            raise self._error("answers with what is no HTTP", 502, "garbage") from None

    # -- health --------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            healthy = await self._look()
            if healthy is not self.is_healthy and not (healthy and self.is_healthy is None):
                tell = log.info if healthy else log.warning
                tell("the upstream of %s is %s", self.options.name, "back" if healthy else "not healthy")
            self.is_healthy = healthy
            await asyncio.sleep(self.options.health_interval_s * random.uniform(0.9, 1.1))

    async def _look(self) -> bool:
        """Whether it lists its models. One that has no such list, and says so, answers at least."""
        if self._session is None:
            return False
        url = self.options.base_url.rstrip("/") + "/models"
        try:
            async with (
                asyncio.timeout(2 * self.options.connect_timeout_s),
                self._session.get(url, allow_redirects=False) as response,
            ):
                return response.status < 500 and response.status not in (401, 403)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            self.breaker.failed()
            return False


def _unreached(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return "cannot be reached: TLS failed"
    reason = getattr(error, "os_error", None)
    said = getattr(reason, "strerror", None)
    return f"cannot be reached: {said if isinstance(said, str) and said else 'no connection'}"
