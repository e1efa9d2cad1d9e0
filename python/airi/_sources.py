"""Where models may come from that is no folder; for configs and engines alike."""

from __future__ import annotations

import re

__all__ = ["HUB", "MLFLOW", "OCI", "REMOTE", "SOURCES", "is_remote", "is_well_formed", "source_name"]

HUB, OCI, MLFLOW = "hf://", "oci://", "models:/"
REMOTE = (HUB, OCI, MLFLOW)
SOURCES = (
    "a folder, hf://org/name[@revision], oci://registry/name[:tag|@sha256:...], models:/name/version|@alias"
)

_FORMS = {
    HUB: r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?",
    # https://github.com/opencontainers/distribution-spec: names, tags and digests.
    OCI: r"[A-Za-z0-9.-]+(:\d{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+(:\w[\w.-]{0,127})?(@sha256:[0-9a-f]{64})?",
    MLFLOW: r"[^/@:\s]+(/([1-9]\d{0,9}|latest)|@[^/@:\s]+)",
}


def is_remote(source: str) -> bool:
    """Whether a source is fetched, and no folder of this machine."""
    return source.startswith(REMOTE)


def is_well_formed(source: str) -> bool:
    """Whether a source that is fetched names something."""
    for prefix, form in _FORMS.items():
        if source.startswith(prefix):
            return re.fullmatch(form, source.removeprefix(prefix), re.ASCII) is not None
    return False


def source_name(source: str) -> str:
    """What a model that is fetched is called unless told otherwise: its name there, without where and which."""
    if source.startswith(MLFLOW):
        return re.split("[/@]", source.removeprefix(MLFLOW))[0]
    return source.partition("@")[0].rsplit("/", 1)[-1].partition(":")[0]
