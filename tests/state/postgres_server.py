"""A real PostgreSQL on a loopback port, in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PASSWORD = "rain-on-tin"


def binaries() -> Path | None:
    """Where initdb and postgres are, the newest ones; None where they are not installed."""
    debian = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if debian:
        return max(debian, key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


def _identity() -> dict[str, Any]:
    """Who runs the server: initdb refuses root."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextmanager
def postgres_server(programs: Path) -> Iterator[PostgresServer]:
    """A server that nobody else uses, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="airi-postgres-") as name:
        server = PostgresServer(programs, Path(name))
        try:
            server.start()
            yield server
        finally:
            server.stop()


class PostgresServer:
    """One data folder and, while it runs, one server process."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._data = folder / "data"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self._who = _identity()
        if self._who:
            os.chown(folder, self._who["user"], self._who["group"])
        words = folder / "password"
        words.write_text(PASSWORD)
        words.chmod(0o644)
        initdb = [str(programs / "initdb"), "--pgdata", str(self._data), "--username", "airi", "--no-sync"]
        initdb += ["--auth", "scram-sha-256", "--pwfile", str(words), "--encoding", "UTF8", "--locale", "C"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **self._who)

    def url(self, database: str = "postgres", *, password: str = PASSWORD) -> str:
        return f"postgresql://airi:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Starts it and returns once it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",  # nobody needs these data after a power cut
            "max_connections": "60",
        }
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        command += [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._data.parent, **self._who
            )
        deadline = time.monotonic() + 60
        ready = [str(self._programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it at once; what it was told is kept."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            self._process = None
