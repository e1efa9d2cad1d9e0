"""Models from MLflow's registry: `models:/name/version`, `models:/name/latest` or `models:/name@alias`.

A registered version never changes, so it is fetched once. Its artifacts are a folder in Hugging Face's format, or what
MLflow's transformers flavor writes: the weights below `model`, the tokenizer below `components/tokenizer`. The
environment of MLflow applies: MLFLOW_TRACKING_URI, MLFLOW_REGISTRY_URI and its credentials. Needs the extra `mlflow`.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from airi._sources import MLFLOW, SOURCES, is_well_formed
from airi.engine.download import arriving, cache_folder
from airi.errors import CheckpointError, ConfigError

__all__ = ["fetch_mlflow"]

_TOKENIZER = Path("components", "tokenizer")


def fetch_mlflow(reference: str) -> Path:
    """The folder of a registered model's checkpoint, fetched where it is not there yet.

    Raises ConfigError for what is no reference, or without the extra, and CheckpointError for what cannot be fetched.
    """
    if not is_well_formed(reference):
        raise ConfigError(f"model is {reference!r}; accepted: {SOURCES}")
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise ConfigError(f"{reference} needs the extra mlflow: pip install 'airi[mlflow]'") from None
    try:
        client = mlflow.MlflowClient()
        name, version, created = _version(client, reference.removeprefix(MLFLOW))
        key = f"{mlflow.get_registry_uri()}\0{name}\0{version}\0{created}"
        folder = cache_folder("mlflow", hashlib.sha256(key.encode()).hexdigest())
        if not folder.is_dir():
            with arriving(folder) as partial:
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"models:/{name}/{version}", dst_path=str(partial)
                )
                _join_tokenizer(partial)
    except (MlflowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{reference} cannot be fetched: {reason}") from None
    for found in (folder, folder / "model"):
        if (found / "config.json").is_file():
            return found
    raise CheckpointError(f"{reference} has no config.json, neither among its artifacts nor below model")


def _version(client: object, named: str) -> tuple[str, str, int]:
    """Name, version and time of creation of what is named now."""
    name, alias = named.partition("@")[::2]
    if alias:
        found = client.get_model_version_by_alias(name, alias)  # type: ignore[attr-defined]
    else:
        name, _, version = named.rpartition("/")
        if version == "latest":
            every = client.search_model_versions(f"name = '{name}'")  # type: ignore[attr-defined]
            version = str(max((int(each.version) for each in every), default=0))
        found = client.get_model_version(name, version)  # type: ignore[attr-defined]
    return name, str(found.version), int(found.creation_timestamp)


def _join_tokenizer(folder: Path) -> None:
    """Puts the tokenizer's files beside the weights, as the engine looks for them there."""
    if (folder / "model" / "config.json").is_file() and (folder / _TOKENIZER).is_dir():
        for path in sorted((folder / _TOKENIZER).iterdir()):
            if not (folder / "model" / path.name).exists():
                shutil.copy(path, folder / "model" / path.name)
