"""Processes of tensor parallelism, as the system sees them."""

from __future__ import annotations

import os
import time
from pathlib import Path


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[1])


def workers_of(pid: int) -> list[int]:
    """Workers that this process has started and that run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _parent(int(entry.name)) == pid:
            command = (entry / "cmdline").read_bytes()
            if b"airi.engine.backends.cuda.worker" in command:
                found.append(int(entry.name))
    return sorted(found)


def has_ended(pid: int) -> bool:
    """Whether no such process runs."""
    return _parent(pid) is None


def wait_until_ended(pid: int) -> None:
    """Returns when the process has; pytest's timeout is the limit."""
    while not has_ended(pid):
        time.sleep(0.02)


def listening_addresses(pid: int) -> list[str]:
    """Addresses, as hexadecimal digits, on which the process accepts TCP connections."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return [line[1].partition(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes]
