"""`airi.lock`: what the sources of a config's models are now, so that a server runs that and nothing else.

A repository on a hub is resolved to a commit. A folder, or what a registry gives, is resolved to a digest over the
names and contents of its files, hidden ones left out: sha256 over one line `PATH NUL SIZE NUL sha256 of its contents`
per file, sorted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from airi._sources import is_remote
from airi.config.load import ConfigFile, read_bounded
from airi.config.mistakes import Mistake
from airi.config.options import source_path
from airi.config.schema import Config
from airi.errors import CheckpointError, ConfigError, ConfigFileError
from airi.lifecycle.registry import version_name

__all__ = [
    "Locked",
    "Progress",
    "digest_folder",
    "lock_path",
    "locked_versions",
    "pinned_sources",
    "resolve",
    "stale_models",
    "write_lock",
]

_VERSION = 1
_CHUNK = 1 << 22

Progress = Callable[[str, int, int], None]
"""Called with (model, bytes read so far, bytes in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """What one model's source is."""

    source: str
    """As the config says it."""
    commit: str | None = None
    """Of a repository on a hub."""
    sha256: str | None = None
    """Of a folder."""

    def as_json(self) -> dict[str, str]:
        """As the lock holds it."""
        pairs = (("source", self.source), ("commit", self.commit), ("sha256", self.sha256))
        return {name: value for name, value in pairs if value is not None}


def lock_path(file: ConfigFile) -> Path:
    """Where a config's lock is: beside it, `airi.lock` for `airi.yaml`."""
    return file.path.with_suffix(".lock")


def resolve(
    file: ConfigFile, progress: Progress | None = None, *, only: Collection[str] | None = None
) -> dict[str, Locked]:
    """What every model's source is now, by model, or by `MODEL@ID` where versions come and go.

    `only` these, where given. Raises ConfigFileError with a line for each that cannot be told.
    """
    found: dict[str, Locked] = {}
    mistakes = []
    for each in _sources(file.config):
        if only is not None and each.name not in only:
            continue
        try:
            found[each.name] = _resolve(file, each, progress)
        except (ConfigError, CheckpointError) as error:
            accepted = f"a source that can be read ({file.masked(str(error))})"
            mistakes.append(file.mistake(each.path, accepted))
    if mistakes:
        raise ConfigFileError(mistakes)
    return found


def write_lock(file: ConfigFile, locked: dict[str, Locked]) -> Path:
    """Writes the lock whole, or leaves the one before; raises ConfigError."""
    path = lock_path(file)
    models = {name: locked[name].as_json() for name in sorted(locked)}
    text = json.dumps({"version": _VERSION, "models": models}, indent=2, ensure_ascii=False) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    return path


def pinned_sources(file: ConfigFile, progress: Progress | None = None) -> dict[str, str]:
    """Where models come from by the lock beside a config, named as `resolve` does; empty without a lock.

    Repositories are pinned to their commits; folders are read whole and must be what they were. Raises
    ConfigFileError with a line for each model that is not as the lock says.
    """
    path = lock_path(file)
    if not path.exists():
        return {}
    locked = _read_lock(path)
    sources: dict[str, str] = {}
    mistakes = []
    for each in _sources(file.config):
        try:
            sources[each.name] = _pinned(file, each, locked.get(each.name), progress)
        except ConfigError as error:
            mistakes.append(file.mistake(each.path, f"{file.masked(str(error))}, or run `airi lock` again"))
    if mistakes:
        raise ConfigFileError(mistakes)
    return sources


def stale_models(file: ConfigFile) -> list[Mistake]:
    """Models of which the lock beside a config, where there is one, says something else; files are not read."""
    path = lock_path(file)
    locked = _read_lock(path) if path.exists() else None
    return [
        file.mistake(each.path, f"what {path.name} says, or run `airi lock` again")
        for each in _sources(file.config)
        if locked is not None and not _is_of(locked.get(each.name), each)
    ]


def locked_versions(file: ConfigFile, progress: Progress | None = None) -> dict[str, Locked]:
    """What the versions are that come and go, by `MODEL@ID`: by the lock beside a config, else by what they hold now.

    Raises ConfigFileError as `resolve`. With a lock, `pinned_sources` has found it true.
    """
    path = lock_path(file)
    names = {
        version_name(model.name, version.id) for model in file.config.versioned for version in model.versions
    }
    if path.exists():
        return {name: entry for name, entry in _read_lock(path).items() if name in names}
    return resolve(file, progress, only=names)


def digest_folder(folder: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """The digest of a folder's files; raises CheckpointError. `progress` gets bytes read so far, and in all."""
    try:
        files = sorted(_files(folder), key=lambda found: found[0])
        total = sum(size for _, _, size in files)
        done = 0
        whole = hashlib.sha256()
        for name, path, size in files:
            own = hashlib.sha256()
            read = 0
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    own.update(chunk)
                    read += len(chunk)
                    if progress is not None:
                        progress(done + read, total)
            done += size
            whole.update(f"{name}\0{read}\0{own.hexdigest()}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from None
    return whole.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path, int]]:
    """Name, path and size of every file below a folder, links to files included, links to folders not followed."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder")
    for top, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in names:
            path = Path(top, name)
            if not name.startswith("."):
                if not path.is_file():
                    raise CheckpointError(f"{path} is no file, or a link to nothing")
                yield path.relative_to(folder).as_posix(), path, path.stat().st_size


def _raise(error: OSError) -> None:
    raise error


def _resolve(file: ConfigFile, each: _Source, progress: Progress | None) -> Locked:
    source = each.text
    if source.startswith("hf://"):
        return Locked(source=source, commit=_commit_of(source))

    def on_bytes(done: int, total: int) -> None:
        if progress is not None:
            progress(each.name, done, total)

    return Locked(source=source, sha256=digest_folder(_folder(file, source), on_bytes))


def _folder(file: ConfigFile, source: str) -> Path:
    """Where the files of a source are, fetched from its registry where it has one. Raises CheckpointError."""
    path = source_path(file, source)
    if not is_remote(path):
        return Path(path)
    from airi.engine.hub import resolve_model_path

    return resolve_model_path(path)


def _commit_of(source: str) -> str:
    """The commit that a revision on a hub is now; raises CheckpointError."""
    from huggingface_hub import HfApi, errors

    from airi.engine.hub import parse_hub_reference

    reference = parse_hub_reference(source)
    try:
        commit = HfApi().model_info(reference.repo, revision=reference.revision, timeout=30).sha
    except errors.GatedRepoError:
        reason = "the repository is gated; accept its terms and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "no such repository, or it is private and HF_TOKEN does not give access"
    except errors.RevisionNotFoundError:
        reason = f"no such revision {reference.revision}"
    except Exception as error:
        # Its HTTP clients raise errors of their own, which differ between releases.
        reason = f"the hub cannot be asked: {type(error).__name__}"
    else:
        if commit:
            return str(commit)
        reason = "the hub names no commit"
    raise CheckpointError(f"{reference}: {reason}")


def _read_lock(path: Path) -> dict[str, Locked]:
    try:
        held = json.loads(read_bounded(path))
        if held["version"] != _VERSION:
            raise ValueError
        return {str(name): Locked(**entry) for name, entry in held["models"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not a lock of this version; run `airi lock` again") from None


def _pinned(file: ConfigFile, each: _Source, locked: Locked | None, progress: Progress | None) -> str:
    """Where a model comes from; raises ConfigError, whose message says what is accepted."""
    if locked is None or not _is_of(locked, each):
        said = "no such model" if locked is None else "another source for it"
        raise ConfigError(f"what {lock_path(file).name} says, which has {said}")
    if locked.commit is not None:
        return f"{locked.source.split('@')[0]}@{locked.commit}"
    try:
        path = _folder(file, each.text)
        found = digest_folder(
            path, lambda done, total: progress(each.name, done, total) if progress else None
        )
    except CheckpointError as error:
        raise ConfigError(f"a folder that can be read ({error})") from None
    if found != locked.sha256:
        raise ConfigError(f"the files that {lock_path(file).name} was made of; the folder's are others now")
    return str(path)


def _is_of(locked: Locked | None, each: _Source) -> bool:
    return locked is not None and locked.source == each.text


class _Source(NamedTuple):
    """Something that a model comes from."""

    name: str
    path: tuple[str | int, ...]
    """Of its key in the config."""
    text: str


def _sources(config: Config) -> Iterator[_Source]:
    versioned = config.versioned
    for i, model in enumerate(config.models):
        if model.source is not None:
            yield _Source(model.name, ("models", i, "source"), model.source)
        for k, version in enumerate(model.versions):
            name = version_name(model.name, version.id) if model in versioned else model.name
            yield _Source(name, ("models", i, "versions", k, "source"), version.source)
