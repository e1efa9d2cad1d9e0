"""`airi simulate`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Result
from tests.sim.samples import AZURE, MOONCAKE, SERVEGEN, jsonl, write

Airi = Callable[..., Result]


@pytest.fixture
def mooncake(tmp_path: Path) -> Path:
    return write(tmp_path / "mooncake.jsonl", jsonl(MOONCAKE))


def figures(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_json_is_one_object_with_the_documented_figures(airi: Airi, mooncake: Path) -> None:
    result = airi("simulate", "--trace", str(mooncake), "--replicas", "1", "--json", "--ttft-ms", "100")
    found = figures(result)
    # The second prompt finds one full block of 512 tokens less one token: 63 blocks of 16; the third 32 blocks.
    assert found["prefix_hit_rate"] == pytest.approx((1008 + 512) / (1100 + 1024 + 700), rel=1e-5)
    assert found["requests"]["finished"] == 3
    assert found["slo"]["ttft"] == 1.0
    assert {"mean", "p50", "p90", "p95", "p99", "max"} == set(found["ttft_ms"])
    assert found["throughput"]["output_tokens_per_s"] > 0
    assert found["wall_s"] > 0
    assert result.err == ""


def test_drawn_requests_take_the_place_of_a_trace(airi: Airi) -> None:
    drawn = "rate=20,requests=50,input=100,output=5,tenants=2,prefix=512"
    found = figures(airi("simulate", "--generate", drawn, "--json"))
    assert found["requests"]["finished"] == 50
    assert {tenant["tenant"] for tenant in found["tenants"]} == {0, 1}
    # All but the first of each tenant find its prefix.
    assert found["prefix_hit_rate"] > 0.7


def test_a_narrow_terminal_cuts_no_figure(airi: Airi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    drawn = "rate=20,requests=400,input=3000,output=20,tenants=2,seed=1"
    found = figures(airi("simulate", "--generate", drawn, "--json"))
    shown = airi("simulate", "--generate", drawn).out
    assert "…" not in shown
    for tenant in found["tenants"]:
        assert tenant["prompt_tokens"] > 100_000
        for name in ("prompt_tokens", "output_tokens", "service"):
            assert f"{tenant[name]:,}" in shown


def test_a_trace_and_drawn_requests_are_one_too_many(airi: Airi, mooncake: Path) -> None:
    result = airi("simulate", "--trace", str(mooncake), "--generate", "rate=1")
    assert result.code != 0
    assert "give --trace FILE, --generate rate=... or --replay FILE" in result.err


def test_block_size_and_blocks_are_those_asked_for(airi: Airi, mooncake: Path) -> None:
    found = figures(
        airi("simulate", "--trace", str(mooncake), "--block-size", "512", "--kv-blocks", "5", "--json")
    )
    assert found["memory"]["kv_blocks"] == 5
    assert found["prefix_hit_rate"] == pytest.approx((512 + 512) / (1100 + 1024 + 700), rel=1e-5)


def test_the_same_command_prints_the_same_but_for_the_wall(airi: Airi, mooncake: Path) -> None:
    command = (
        "simulate",
        "--trace",
        str(mooncake),
        "--replicas",
        "3",
        "--copies",
        "5",
        "--json",
        "--timeline",
    )
    first, second = (figures(airi(*command)) for _ in range(2))
    assert first.pop("wall_s") > 0
    assert second.pop("wall_s") > 0
    assert json.dumps(first) == json.dumps(second)
    assert first["requests"]["finished"] == 15


def test_without_json_there_are_tables(airi: Airi, tmp_path: Path) -> None:
    trace = write(tmp_path / "s.csv", SERVEGEN)
    result = airi("simulate", "--trace", str(trace), "--replicas", "2", "--router", "least_loaded")
    assert result.code == 0
    for text in ("s.csv", "prefix hit rate", "first token", "tenants", "14", "preemptions"):
        assert text in result.out
    assert result.err == ""


def test_tiers_are_in_the_figures_and_in_the_table(airi: Airi) -> None:
    command = (
        *("simulate", "--generate", "rate=4,requests=300,input=200,output=20,tenants=10,prefix=2048"),
        *("--kv-blocks", "500", "--host-kv-blocks", "2000", "--disk-kv-blocks", "500"),
    )
    found = figures(airi(*command, "--json"))
    assert found["tiers"]["host_kv_blocks"] == 2000
    assert found["tiers"]["loads"] > 0
    assert 0 < found["loaded_tokens"] <= found["cached_tokens"]
    slow = figures(airi(*command, "--json", "--host-kv-gb-per-s", "1"))
    assert slow["loaded_tokens"] < found["loaded_tokens"]
    table = airi(*command).out
    for text in ("2,000 in host memory", "500 on disk", "loaded", "blocks copied"):
        assert text in table
    assert figures(airi(*command[:3], "--json"))["tiers"] is None


def test_refused_requests_are_said_by_reason(airi: Airi, tmp_path: Path) -> None:
    trace = write(tmp_path / "a.csv", AZURE)
    result = airi("simulate", "--trace", str(trace), "--kv-blocks", "40", "--set", "aging_us=null")
    assert "1 too long" in result.out
    assert "2 finished" in result.out


def test_a_plot_and_exact_rows_are_written(airi: Airi, mooncake: Path, tmp_path: Path) -> None:
    plot, rows = tmp_path / "t.svg", tmp_path / "rows.csv"
    arguments = ("--trace", str(mooncake), "--plot", str(plot), "--rows", str(rows))
    assert airi("simulate", *arguments).code == 0
    assert plot.read_text().startswith("<svg ")
    assert "mooncake.jsonl on 1 x h200-8b-fp8" in plot.read_text()
    with rows.open() as file:
        found = list(csv.DictReader(file))
    assert sorted(int(r["request_id"]) for r in found) == [0, 1, 2]
    assert {int(r["generated_tokens"]) for r in found} == {6, 4, 3}


def test_a_trace_can_be_shortened_repeated_and_sped_up(airi: Airi, mooncake: Path) -> None:
    command = (
        "simulate",
        "--trace",
        str(mooncake),
        "--json",
        "--limit",
        "2",
        "--repeat",
        "3",
        "--speedup",
        "2",
    )
    found = figures(airi(*command))
    assert found["requests"]["read"] == 6
    assert found["simulated_s"] < 1.0


def test_tenants_can_be_made_of_prefixes_and_weighed(airi: Airi, mooncake: Path) -> None:
    command = (
        "simulate",
        "--trace",
        str(mooncake),
        "--json",
        "--root-tenants",
        "16",
        "--tenant-weight",
        "0=2.5",
    )
    assert [t["tenant"] for t in figures(airi(*command))["tenants"]] == [0]


def test_tenants_with_names_are_weighed_by_them(airi: Airi, tmp_path: Path) -> None:
    rows = "".join(f"{0 if i < 40 else 0.001},{'ab'[i % 2]},800,50\n" for i in range(80))
    trace = write(tmp_path / "c.csv", "arrival_s,client,input_tokens,output_tokens\n" + rows)
    command = ("simulate", "--trace", str(trace), "--max-num-seqs", "4", "--json", "--tenant-weight", "b=50")
    ttft = {t["tenant"]: t["ttft_ms"]["mean"] for t in figures(airi(*command))["tenants"]}
    assert ttft["b"] < 0.8 * ttft["a"]


def test_a_plot_that_cannot_be_written_is_said_before_anything_is_simulated(
    airi: Airi, mooncake: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.svg").mkdir()
    rows = tmp_path / "rows.csv"
    result = airi(
        "simulate", "--trace", str(mooncake), "--plot", str(tmp_path / "t.svg"), "--rows", str(rows)
    )
    assert "t.svg: Is a directory" in result.err
    assert not rows.exists()


def test_step_times_come_from_a_file(airi: Airi, mooncake: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", '{"memory": {"step_us": 1e6}, "arithmetic": {}, "source": "slow"}')
    found = figures(airi("simulate", "--trace", str(mooncake), "--step-time", str(path), "--json"))
    assert found["settings"]["step_time"] == "slow"
    assert found["itl_ms"]["p50"] == 1000.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --trace FILE, --generate rate=... or --replay FILE"),
        (("--trace", "{t}", "--replay", "{t}"), "give --trace FILE, --generate rate=... or --replay FILE"),
        (("--trace", "none.csv"), "none.csv: No such file or directory"),
        (("--trace", "{t}", "--replicas", "0"), "replicas is 0; it must be a whole number from 1 to 4096"),
        (("--trace", "{t}", "--router", "best"), "router is 'best'; accepted: round_robin"),
        (("--trace", "{t}", "--speedup", "0"), "speedup is 0; it must be in"),
        (("--trace", "{t}", "--copies", "0"), "copies is 0; it must be a whole number from 1 to 1000000"),
        (("--trace", "{t}", "--copies", "9999999"), "copies is 9999999; it must be a whole number from 1 to"),
        (("--trace", "{t}", "--repeat", "0"), "repeat is 0; it must be at least 1"),
        (("--trace", "{t}", "--hash-block", "9999999"), "hash_block is 9999999; it must be a whole number"),
        (("--trace", "{t}", "--step-time", ""), "step_time is ''; give a file or one of: h200-8b-fp8"),
        (("--trace", "{t}", "--timeline"), "timeline is part of the JSON object; give --json too"),
        (("--trace", "{t}", "--set", "self=1"), "the scheduler has no setting 'self'"),
        (("--trace", "{t}", "--tenant-weight", "0=1e-300"), "weight of tenant 0: weight must lie in"),
        (("--trace", "{t}", "--tenant-weight", "=1"), "tenant_weight is '=1'; give TENANT=WEIGHT"),
        (
            ("--generate", "rate=1", "--tenant-weight", "ann=1"),
            "tenant is 'ann'; drawn ones are whole numbers",
        ),
        (("--generate", "rate=1e-6,requests=1e5,burstiness=0"), "arrival_us must be in order, in"),
        (("--replay", "x", "--block-size", "8"), "block_size does not go with --replay"),
        (("--replay", "x", "--limit", "8"), "limit does not go with --replay"),
        (("--replay", "x", "--plot", "x.svg"), "plot does not go with --replay"),
        (("--replay", "x", "--fit-step-time", "/none/x"), "fit_step_time /none/x: No such file"),
        (
            ("--trace", "{t}", "--step-time", "none"),
            "step_time is 'none'; give a file or one of: h200-8b-fp8",
        ),
        (("--trace", "{t}", "--set", "x"), "set is 'x'; give NAME=JSON"),
        (("--trace", "{t}", "--set", "no_such=1"), "the scheduler has no setting 'no_such'"),
        (("--trace", "{t}", "--set", "len=1"), "the scheduler has no setting 'len'"),
        (("--trace", "{t}", "--set", "=1"), "set is '=1'; give NAME=JSON"),
        (("--trace", "{t}", "--set", "bypass_tokens=-1"), "bypass_tokens must be"),
        (("--trace", "{t}", "--set", "min_slabs=1"), "takes no setting min_slabs: a replica has one"),
        (("--trace", "{t}", "--set", "num_slabs=1"), "takes no setting num_slabs: a replica has one"),
        (("--trace", "{t}", "--set", "host_bytes=4096"), "takes no setting host_bytes: give host_kv_blocks"),
        (("--trace", "{t}", "--set", 'aging_us="x"'), "aging_us is 'x'; RuntimeConfig takes no such setting"),
        (("--trace", "{t}", "--disk-kv-blocks", "9"), "host_kv_blocks is 0; the disk is reached through"),
        (("--trace", "{t}", "--host-kv-gb-per-s", "0"), "host_kv_gb_per_s is 0.0; it must be a number in"),
        (("--trace", "{t}", "--tenant-weight", "a=b"), "tenant_weight is 'a=b'; give TENANT=WEIGHT"),
        (("--trace", "{t}", "--plot", "x.bmp"), "plot is 'x.bmp'; give a file that ends in .svg"),
        (("--trace", "{t}", "--plot", "/none/x.svg"), "plot /none/x.svg: No such file"),
        (("--trace", "{t}", "--rows", "/none/x.csv"), "rows /none/x.csv: No such file"),
        (("--trace", "{t}", "--fit-step-time", "x"), "fit_step_time needs --replay FILE"),
        (("--trace", "{t}", "--kv-blocks", "99999999999"), "kv_blocks is 99999999999; it must be"),
    ],
)
def test_a_mistake_is_one_line(airi: Airi, mooncake: Path, arguments: tuple[str, ...], said: str) -> None:
    result = airi("simulate", *(a.format(t=mooncake) for a in arguments))
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1


def test_a_bad_line_is_named(airi: Airi, tmp_path: Path) -> None:
    trace = write(tmp_path / "a.csv", AZURE + "2023-11-16 18:15:52,12,many\n")
    result = airi("simulate", "--trace", str(trace))
    assert result.code == 2
    assert "a.csv line 5: GeneratedTokens is 'many'; accepted: a whole number from 0" in result.err
