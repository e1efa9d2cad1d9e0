"""Which files of a folder are read."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from airi.retrieval.ingest.documents import Failure
from airi.retrieval.ingest.reading import SUFFIXES

__all__ = ["Found", "find_files"]

IGNORED = ("node_modules/", "__pycache__/", ".*")
"""What is never read of a folder: as hidden files and folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file to read, and what it is called."""

    path: Path
    source: str


def find_files(
    paths: Iterable[Path | str],
    *,
    include: Iterable[str] = (),
    ignore: Iterable[str] = (),
    root: Path | None = None,
) -> Iterator[Found | Failure]:
    """Files that are named, and those in folders that are named, in the order of their names; each file once.

    Of folders, files are read whose kind is known, or that `include` has patterns of; `ignore` has patterns of files
    and, with a `/` at the end, of folders. In patterns `*` is anything but `/`, `**` that, too; one without `/` before
    its end is of names in any folder. No link is followed to a folder, and to a file only where that lies in the folder
    itself. A folder that cannot be listed is a failure, and so is a path that there is not.

    A source is named by its path as it was given; with `root`, whatever folder that was given from: below `root` by the
    path from there, elsewhere by the whole one.
    """
    walk = _Walk(tuple(include), (*IGNORED, *ignore))
    seen: set[str] = set()
    for path in map(Path, paths):
        for each in walk.folder(path) if os.path.isdir(path) else (_named(path),):
            real = os.path.realpath(each.path) if isinstance(each, Found) else ""
            if real not in seen or isinstance(each, Failure):
                seen.add(real)
                yield each if root is None else replace(each, source=_from(root, each.source))


def _named(path: Path) -> Found | Failure:
    """A file that was named itself: a link and a pipe, too, but no device, which may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no such file or folder"
        return Failure(source=_name(path), reason=reason)
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return Failure(source=_name(path), reason="a device is no file to read")
    return Found(path=path, source=_name(path))


class _Walk:
    def __init__(self, include: tuple[str, ...], ignore: tuple[str, ...]) -> None:
        self._include = include
        self._ignore_files = [each for each in ignore if not each.endswith("/")]
        self._ignore_folders = [each.rstrip("/") for each in ignore]

    def folder(self, root: Path) -> Iterator[Found | Failure]:
        failures: list[OSError] = []
        real_root = os.path.realpath(root)
        for folder, inner, names in os.walk(root, onerror=failures.append):
            inside = Path(folder).relative_to(root).as_posix()
            inside = "" if inside == "." else inside + "/"
            inner[:] = sorted(each for each in inner if not _matches(inside + each, self._ignore_folders))
            for name in sorted(names):
                path = Path(folder) / name
                if self._wanted(inside + name) and _is_inside(path, real_root):
                    yield Found(path=path, source=_name(path))
            while failures:
                error = failures.pop()
                yield Failure(
                    source=_name(Path(error.filename)), reason=f"cannot be listed: {error.strerror}"
                )
        for error in failures:
            yield Failure(source=_name(Path(error.filename)), reason=f"cannot be listed: {error.strerror}")

    def _wanted(self, name: str) -> bool:
        if _matches(name, self._ignore_files):
            return False
        if self._include:
            return _matches(name, self._include)
        return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_inside(path: Path, real_root: str) -> bool:
    """Whether it is a file, or a link to one in the same folder; sockets and pipes are none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
    except OSError:
        return not os.path.islink(
            path
        )  # a broken link is no file; what cannot be read is told when it is read
    return not os.path.islink(path) or os.path.realpath(path).startswith(os.path.join(real_root, ""))


def _name(path: Path) -> str:
    """The path as text; what is not UTF-8 in it is shown as its bytes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _from(root: Path, source: str) -> str:
    path, folder = os.path.abspath(source), os.path.join(os.path.abspath(root), "")
    return path.removeprefix(folder)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    last = name.rpartition("/")[2]
    return any(_compiled(each).fullmatch(name if "/" in each else last) for each in patterns)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of names as a regular expression."""
    parts = []
    place = 0
    while place < len(pattern):
        sign = pattern[place]
        if pattern.startswith("**/", place):
            parts.append("(?:[^/]+/)*")
            place += 2
        elif pattern.startswith("**", place):
            parts.append(".*")
            place += 1
        elif sign == "*":
            parts.append("[^/]*")
        else:
            parts.append("[^/]" if sign == "?" else re.escape(sign))
        place += 1
    return re.compile("".join(parts), re.DOTALL)
