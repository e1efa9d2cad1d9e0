"""Models from MLflow's registry, by a real one in files; MLflow has an environment of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy
import pytest

import airi
from airi.engine.hub import resolve_model_path
from airi.errors import ConfigError
from tests.clients.environments import python_of

_REGISTER = """
import sys, mlflow
from mlflow import MlflowClient
client = MlflowClient()
run = client.create_run(client.create_experiment("e"))
for folder in sys.argv[1:]:
    client.log_artifacts(run.info.run_id, folder, folder.rsplit("/", 1)[-1])
client.create_registered_model("tiny")
for folder in sys.argv[1:]:
    source = f"{run.info.artifact_uri}/{folder.rsplit('/', 1)[-1]}"
    client.create_model_version("tiny", source, run.info.run_id)
client.set_registered_model_alias("tiny", "champion", "1")
"""
_RESOLVE = """
import sys
from airi.engine.hub import resolve_model_path
from airi.errors import AiriError
for reference in sys.argv[1:]:
    try:
        print(resolve_model_path(reference))
    except AiriError as error:
        print(error)
"""


def run(program: str, *arguments: str, folder: Path) -> list[str]:
    """The lines that a program prints where MLflow is installed, and AIRI is as it is here."""
    sites = dict.fromkeys(str(Path(str(module.__file__)).parents[1]) for module in (airi, numpy))
    settings = {"AIRI_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(sites)}
    settings |= {"MLFLOW_TRACKING_URI": (folder / "runs").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [str(python_of("mlflow")), "-c", program, *arguments]
    environment = {**os.environ, **settings}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow  # installs MLflow at first
@pytest.mark.timeout(900)
def test_versions_and_aliases_are_folders_that_stay(tmp_path: Path) -> None:
    plain, flavor = tmp_path / "plain", tmp_path / "flavor"
    for folder in (plain, flavor / "model", flavor / "components" / "tokenizer"):
        folder.mkdir(parents=True)
    (plain / "config.json").write_text("{}")
    (flavor / "model" / "config.json").write_text('{"flavor": 1}')
    (flavor / "components" / "tokenizer" / "tokenizer.json").write_text("{}")
    (flavor / "MLmodel").write_text("flavors: {}")
    run(_REGISTER, str(plain), str(flavor), folder=tmp_path)
    names = ("models:/tiny/1", "models:/tiny@champion", "models:/tiny/2", "models:/tiny/latest")
    one, champion, two, latest = (Path(line) for line in run(_RESOLVE, *names, folder=tmp_path))
    assert one == champion
    assert (one / "config.json").read_text() == "{}"
    assert two == latest
    assert sorted(path.name for path in two.iterdir()) == ["config.json", "tokenizer.json"]
    (one / "mark").touch()
    assert [Path(line) for line in run(_RESOLVE, "models:/tiny/1", folder=tmp_path)] == [one]
    assert (one / "mark").exists()
    absent, unnamed = run(_RESOLVE, "models:/tiny/9", "models:/other@x", folder=tmp_path)
    assert absent.startswith("models:/tiny/9 cannot be fetched: ")
    assert unnamed.startswith("models:/other@x cannot be fetched: ")


@pytest.mark.parametrize(
    "reference", ["models:/", "models:/tiny", "models:/tiny/0", "models:/tiny/x", "models:/a/b/1"]
)
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(ConfigError, match=r"accepted: .*models:/name/version"):
        resolve_model_path(reference)
