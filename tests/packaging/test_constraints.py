"""What CI installs is pinned, all of it that the project itself names."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_of_the_project_has_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    own = (project["build-system"]["requires"], project["project"]["dependencies"])
    groups = itertools.chain(*project["dependency-groups"].values())
    wanted = (requirement for requirement in itertools.chain(*own, groups) if "==" not in requirement)
    names = {canonical(re.split(r"[^\w.-]", requirement)[0]) for requirement in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonical(line.split("==")[0]) for line in lines if "==" in line}
    assert names - pinned == set()
