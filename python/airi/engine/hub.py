"""Where a model comes from: a local folder, a repository on a Hugging Face hub, or what else is fetched.

`hf://org/name` or `hf://org/name@revision` is fetched into the hub's own cache, only the files the engine reads.
The environment of huggingface_hub applies: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from airi._sources import HUB, MLFLOW, OCI, SOURCES
from airi.engine.checkpoint import INDEX_FILE, SINGLE_FILE, shard_names
from airi.errors import CheckpointError, ConfigError

# Everything but the weights; small.
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "*_Pooling/config.json",
    INDEX_FILE,
)
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REFERENCE = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?")


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository on the hub; `revision` None means its default branch."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return HUB + self.repo + (f"@{self.revision}" if self.revision else "")


def is_hub_reference(model: str) -> bool:
    """Whether `model` names a hub repository rather than a folder."""
    return model.startswith(HUB)


def parse_hub_reference(model: str) -> HubReference:
    """Parses `hf://org/name[@revision]`; raises `ConfigError`."""
    match = _REFERENCE.fullmatch(model.removeprefix(HUB))
    if not is_hub_reference(model) or match is None:
        raise ConfigError(f"model is {model!r}; accepted: a folder or hf://org/name[@revision]")
    return HubReference(match["repo"], match["revision"])


def resolve_model_path(model: str) -> Path:
    """A local folder for `model`, fetching it where it is a reference to a hub or a registry.

    Raises `ConfigError` for a reference that cannot be parsed, or whose extra is not installed, and `CheckpointError`
    when the folder does not exist or the files cannot be had.
    """
    if is_hub_reference(model):
        return _fetch(parse_hub_reference(model))
    if model.startswith(OCI):
        from airi.engine.oci import fetch_oci

        return fetch_oci(model)
    if model.startswith(MLFLOW):
        from airi.engine.mlflow_models import fetch_mlflow

        return fetch_mlflow(model)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        wrong = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"model folder {folder} {wrong}; accepted: {SOURCES}")
    return folder


def _fetch(reference: HubReference) -> Path:
    folder = _snapshot(reference, TEXT_FILES)
    index = folder / INDEX_FILE
    weights = tuple(shard_names(index)) if index.exists() else (SINGLE_FILE,)
    folder = _snapshot(reference, (*TEXT_FILES, *weights))
    for name in ("config.json", *weights):
        if not (folder / name).exists():
            raise CheckpointError(f"{reference} has no {name}")
    return folder


def _snapshot(reference: HubReference, files: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(reference.repo, revision=reference.revision, allow_patterns=list(files))
    except errors.GatedRepoError:
        reason = "the repository is gated; accept its terms and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "no such repository, or it is private and HF_TOKEN does not give access"
    except errors.RevisionNotFoundError:
        reason = f"no such revision {reference.revision}"
    except errors.LocalEntryNotFoundError:
        reason = "not in the local cache, and the hub cannot be reached or HF_HUB_OFFLINE is set"
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    except Exception as error:
        # Its HTTP and Xet clients raise errors of their own, which differ between releases.
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    else:
        return Path(folder)
    raise CheckpointError(f"{reference} cannot be fetched: {reason}")
