"""What each of several engines on one machine gets of it."""

from __future__ import annotations

import pytest

from airi.engine import EngineOptions, ModelOptions, replicas
from airi.engine.replicas import replica_options
from airi.errors import ConfigError


def options(**given: object) -> EngineOptions:
    return EngineOptions(models=(ModelOptions(path="/m/a"),), **given)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "usable_cores", lambda: 8)
    monkeypatch.setattr(replicas, "has_driver", lambda: False)


def test_one_is_as_it_was() -> None:
    given = options(threads=5, kv_memory=1000)
    assert replica_options(given, 1) == (given,)


def test_cpus_and_memory_are_divided() -> None:
    for each in replica_options(options(), 3):
        assert (each.threads, each.kv_memory) == (2, None)
        assert each.kv_fraction == pytest.approx(0.5 / 3)
    given = options(threads=4, kv_memory=9000, kv_fraction=0.9, host_kv_memory=600)
    for each in replica_options(given, 3):
        assert (each.threads, each.kv_memory, each.host_kv_memory) == (1, 3000, 200)
        assert each.kv_fraction == pytest.approx(0.3)


def test_gpus_are_one_each_with_all_of_its_memory() -> None:
    made = replica_options(options(device="cuda", kv_memory=9000, threads=4, host_kv_memory=600), 2)
    assert [(each.device, each.kv_memory, each.threads) for each in made] == [
        ("cuda:0", 9000, 4),
        ("cuda:1", 9000, 4),
    ]
    assert [each.host_kv_memory for each in made] == [300, 300]


def test_files_are_each_its_own() -> None:
    given = options(record_steps="/l/steps", host_kv_memory=20, disk_kv_path="/d", disk_kv_memory=10)
    made = replica_options(given, 2)
    assert [each.record_steps for each in made] == ["/l/steps.0", "/l/steps.1"]
    assert [(each.disk_kv_path, each.disk_kv_memory) for each in made] == [("/d/0", 5), ("/d/1", 5)]


@pytest.mark.parametrize(
    ("given", "count", "said"),
    [
        ({}, 0, "replicas is 0; accepted: from 1 to 64"),
        ({}, 65, "replicas is 65; accepted: from 1 to 64"),
        ({"kv_memory": 2}, 3, "kv_memory is 2; 3 replicas share it and need more"),
        ({"device": "cuda:1"}, 2, "device is 'cuda:1'; with replicas 2 it must be 'cuda'"),
        (
            {"device": "cuda", "tensor_parallel_size": 2},
            2,
            "replicas is 2; with tensor_parallel_size 2 it must be 1",
        ),
    ],
)
def test_what_cannot_be_divided_is_told(given: dict[str, object], count: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replica_options(options(**given), count)
    assert str(caught.value).startswith(said)
