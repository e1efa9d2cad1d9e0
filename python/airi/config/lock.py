"""`airi.lock`: what the sources of a config's models are now, so that a server runs that and nothing else.

A repository on a hub is resolved to a commit. A folder is resolved to a digest over the names and contents of its
files, hidden ones left out: sha256 over one line `PATH NUL SIZE NUL sha256 of its contents` per file, sorted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from airi.config.load import ConfigFile, read_bounded
from airi.config.mistakes import Mistake
from airi.config.models import Model
from airi.config.options import model_path
from airi.errors import CheckpointError, ConfigError, ConfigFileError

__all__ = [
    "Locked",
    "Progress",
    "digest_folder",
    "lock_path",
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


def resolve(file: ConfigFile, progress: Progress | None = None) -> dict[str, Locked]:
    """What every model's source is now, by model. Raises ConfigFileError with a line for each that cannot be told."""
    found: dict[str, Locked] = {}
    mistakes = []
    for i, model in enumerate(file.config.models):
        if model.upstream is not None:
            continue
        try:
            found[model.name] = _resolve(file, model, progress)
        except (ConfigError, CheckpointError) as error:
            accepted = f"a source that can be read ({file.masked(str(error))})"
            mistakes.append(file.mistake(_source_path(i, model), accepted))
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
    """Where models come from by the lock beside a config; empty without a lock.

    Repositories are pinned to their commits; folders are read whole and must be what they were. Raises
    ConfigFileError with a line for each model that is not as the lock says.
    """
    path = lock_path(file)
    if not path.exists():
        return {}
    locked = _read_lock(path)
    sources: dict[str, str] = {}
    mistakes = []
    for i, model in enumerate(file.config.models):
        if model.upstream is not None:
            continue
        try:
            sources[model.name] = _pinned(file, model, locked.get(model.name), progress)
        except ConfigError as error:
            mistakes.append(
                file.mistake(_source_path(i, model), f"{file.masked(str(error))}, or run `airi lock` again")
            )
    if mistakes:
        raise ConfigFileError(mistakes)
    return sources


def stale_models(file: ConfigFile) -> list[Mistake]:
    """Models of which the lock beside a config, where there is one, says something else; files are not read."""
    path = lock_path(file)
    locked = _read_lock(path) if path.exists() else None
    return [
        file.mistake(_source_path(i, model), f"what {path.name} says, or run `airi lock` again")
        for i, model in enumerate(file.config.models)
        if locked is not None and model.upstream is None and not _is_of(locked.get(model.name), model)
    ]


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


def _resolve(file: ConfigFile, model: Model, progress: Progress | None) -> Locked:
    source = model.location
    if source.startswith("hf://"):
        return Locked(source=source, commit=_commit_of(source))

    def on_bytes(done: int, total: int) -> None:
        if progress is not None:
            progress(model.name, done, total)

    return Locked(source=source, sha256=digest_folder(Path(model_path(file, model)), on_bytes))


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


def _pinned(file: ConfigFile, model: Model, locked: Locked | None, progress: Progress | None) -> str:
    """Where a model comes from; raises ConfigError, whose message says what is accepted."""
    if locked is None or not _is_of(locked, model):
        said = "no such model" if locked is None else "another source for it"
        raise ConfigError(f"what {lock_path(file).name} says, which has {said}")
    if locked.commit is not None:
        return f"{locked.source.split('@')[0]}@{locked.commit}"
    path = model_path(file, model)
    try:
        found = digest_folder(
            Path(path), lambda done, total: progress(model.name, done, total) if progress else None
        )
    except CheckpointError as error:
        raise ConfigError(f"a folder that can be read ({error})") from None
    if found != locked.sha256:
        raise ConfigError(f"the files that {lock_path(file).name} was made of; the folder's are others now")
    return path


def _is_of(locked: Locked | None, model: Model) -> bool:
    return locked is not None and locked.source == model.location


def _source_path(index: int, model: Model) -> tuple[str | int, ...]:
    return ("models", index, "source") if model.source else ("models", index, "versions", 0, "source")
