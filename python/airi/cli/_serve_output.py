"""What `airi serve` shows: loading bars, then where it listens and a line to try."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from airi.gateway.lifecycle import Listening
    from airi.transport import Progress as LoadProgress


class ServeOutput:
    """Writes to stderr: bars on a terminal, plain lines elsewhere. Stdout stays free."""

    def __init__(self, make_key: str | None = None) -> None:
        """`make_key`: the command that makes a key for this server."""
        self._make_key = make_key
        self._console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._bars_shown = False
        self._loading = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hide_bars()

    def progress(self, update: LoadProgress) -> None:
        """One step of loading a model; not shown for an engine that starts again, which the log tells."""
        if not self._loading:
            return
        key = (update.model, update.stage)
        label = f"{update.model}: {update.stage}" if update.model else f"engine: {update.stage}"
        if not self._console.is_terminal:
            if key not in self._tasks:
                self._tasks[key] = TaskID(len(self._tasks))
                self._console.print(label, soft_wrap=True)
            return
        if not self._bars_shown:
            self._bars_shown = True
            self._bars.start()
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(label, total=update.total)
        self._bars.update(self._tasks[key], completed=update.done, total=update.total)

    def listening(self, server: Listening) -> None:
        """Requests are answered now."""
        self._loading = False
        self._hide_bars()
        url, model = server.url, server.models[0]
        if server.grpc_port is not None:
            self._say(f"gRPC at port {server.grpc_port}")
        self._console.print(f"Serving {', '.join(server.models)} at {url}/v1   (Ctrl-C ends)", soft_wrap=True)
        if self._make_key is not None:
            self._say(f"Make a key: AIRI_API_KEY=$({self._make_key})")
        key = '-H "Authorization: Bearer $AIRI_API_KEY" ' if server.needs_key else ""
        message = '{"role": "user", "content": "Hello!"}'
        self._say(
            f"Try: curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' "
            f'-d \'{{"model": "{model}", "messages": [{message}]}}\''
        )

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)

    def _hide_bars(self) -> None:
        if self._bars_shown:
            self._bars_shown = False
            self._bars.stop()
