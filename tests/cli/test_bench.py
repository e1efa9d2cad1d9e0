"""`airi bench`: rows as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import StubServer

Airi = Callable[..., Any]
FIGURES = {"output_tok_s", "request_s", "ttft_ms_p50", "itl_ms_p99", "tpot_ms_mean", "e2e_ms_p95", "hardware"}


def test_scheduler_prints_a_json_row_per_size(airi: Airi) -> None:
    result = airi("bench", "scheduler", "--running", "2", "--running", "5", "--steps", "1", "--json")
    assert (result.code, result.err) == (0, "")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [row["running"] for row in rows] == [2, 5]
    assert all(row["ns_per_request_step"] > 0 for row in rows)


def test_scheduler_shows_its_sizes_side_by_side(airi: Airi) -> None:
    result = airi("bench", "scheduler", "--running", "2", "--running", "1024", "--steps", "1")
    assert result.code == 0
    assert "1,024" in result.out


@pytest.mark.usefixtures("_fake_engine")
def test_throughput_prints_one_json_row(airi: Airi, folder: Path) -> None:
    sizes = ("--requests", "5", "--input-len", "6", "--output-len", "4")
    result = airi("bench", "throughput", str(folder), *sizes, "--json")
    assert (result.code, result.err) == (0, "")
    row = json.loads(result.out)
    assert row.keys() >= FIGURES
    assert (row["bench"], row["model"], row["completed"]) == ("throughput", "tiny", 5)
    assert (row["prompt_tokens"], row["output_tokens"]) == (30, 20)


@pytest.mark.usefixtures("_fake_engine")
def test_throughput_shows_a_table_to_people(airi: Airi, folder: Path) -> None:
    result = airi("bench", "throughput", str(folder), "--requests", "2", "--output-len", "4")
    assert result.code == 0
    assert "output_tok_s" in result.out
    lines = [line.split() for line in result.out.splitlines()]
    assert [words[1] for words in lines if len(words) > 7 and words[1] in ("ttft", "itl")] == ["ttft", "itl"]


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_serve_measures_a_running_server(
    airi: Airi, server: StubServer, endpoint: str, *, chunked: bool
) -> None:
    server.chunked = chunked
    load = ("--requests", "6", "--concurrency", "2", "--rate", "500", "--endpoint", endpoint)
    result = airi(
        "bench", "serve", "--url", server.url, *load, "--input-len", "7", "--output-len", "9", "--json"
    )
    assert (result.code, result.err) == (0, "")
    row = json.loads(result.out)
    assert row.keys() >= FIGURES
    assert (row["completed"], row["failed"], row["concurrency"], row["rate"]) == (6, 0, 2, 500)
    assert (row["prompt_tokens"], row["output_tokens"]) == (30, 36)
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["ignore_eos"]) == ("stub-1", 9, True)
    assert len(body["prompt"] if endpoint == "completions" else body["messages"][0]["content"].split()) == 7


def test_a_server_that_refuses_everything_is_an_error(airi: Airi, server: StubServer) -> None:
    server.status = 503
    result = airi("bench", "serve", "--url", server.url, "--requests", "2")
    assert result.code == 2
    assert "every request failed; the first: AiriError: status 503: not today" in result.err


@pytest.mark.parametrize("chunked", [True, False])
def test_an_answer_that_breaks_off_is_a_failure(airi: Airi, server: StubServer, *, chunked: bool) -> None:
    server.cut_after, server.chunked = 2, chunked
    result = airi("bench", "serve", "--url", server.url, "--requests", "2")
    assert result.code == 2
    assert "every request failed; the first: AiriError: the answer broke off" in result.err


def test_without_ignore_eos_the_field_is_left_out(airi: Airi, server: StubServer) -> None:
    assert (
        airi("bench", "serve", "other", "--url", server.url, "--requests", "1", "--no-ignore-eos").code == 0
    )
    assert "ignore_eos" not in server.bodies[0]
    assert server.bodies[0]["model"] == "other"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["scheduler", "--running", "0"], "running is 0; it must be at least 1"),
        (["throughput", "--requests", "0"], "requests is 0; it must be at least 1"),
        (["throughput", "--range-ratio", "1"], "range_ratio is 1; it must be in [0, 1)"),
        (["throughput", "--mix", "odd"], "mix is 'odd'; accepted: random, prefix, mixed, one-long"),
        (["throughput", "m", "--shape", "llama-2m"], "give a model or --shape, not both"),
        (["serve", "--url", "http://x", "--shape", "llama-2m"], "does not go with --url"),
        (["serve", "--rate", "0"], "rate is 0; it must be above 0"),
        (["serve", "--concurrency", "0"], "concurrency is 0"),
        (["serve", "--endpoint", "x"], "endpoint is 'x'; accepted: completions, chat"),
        (["serve", "--vocab", "100"], "vocab is 100; it must be above 100"),
    ],
)
def test_mistakes_are_named(airi: Airi, arguments: list[str], says: str) -> None:
    result = airi("bench", *arguments)
    assert result.code == 2
    assert says in result.err
