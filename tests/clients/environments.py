"""Environments of the outside clients: one each, because together they pin each other down; kept for the next run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "build" / "clients"


def python_of(client: str) -> Path:
    """The interpreter of the environment that requirements/<client>.txt describes."""
    requirements = HERE / "requirements" / f"{client}.txt"
    folder = _folder(client, requirements.read_bytes() + sys.version.encode())
    python = folder / "bin" / "python"
    if not _finished(folder).exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--requirement", str(requirements)])
        _finished(folder).touch()
    return python


def node_folder() -> Path:
    """The folder whose node_modules hold what node/package.json names, and the programs."""
    manifest = HERE / "node" / "package.json"
    folder = _folder("node", manifest.read_bytes())
    if not _finished(folder).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(manifest, folder)
        _run(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder)
        _finished(folder).touch()
    # Node finds modules beside the program, so the program comes here.
    shutil.copy(HERE / "node" / "program.mjs", folder)
    return folder


def clean_environment() -> dict[str, str]:
    """What the clients inherit: neither this package, nor its pins, nor keys of a real service."""
    drop = ("PYTHONPATH", "PIP_CONSTRAINT", "VIRTUAL_ENV")
    prefixes = ("OPENAI_", "ANTHROPIC_")
    return {k: v for k, v in os.environ.items() if k not in drop and not k.startswith(prefixes)}


def _folder(client: str, content: bytes) -> Path:
    return CACHE / f"{client}-{hashlib.sha256(content).hexdigest()[:12]}"


def _finished(folder: Path) -> Path:
    return folder / ".finished"


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
