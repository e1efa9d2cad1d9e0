"""Every kind of trace is read as it is written, and what is wrong in one is a line that says where."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from airi.errors import ConfigError
from airi.simulate import Batch, Trace
from airi.simulate.batches import joined
from tests.sim.samples import AZURE, MOONCAKE, SERVEGEN, VTC, jsonl, write


def read(path: Path, **options: int) -> Batch:
    return joined(list(Trace(path, **options).batches()))


def test_azure_dates_are_microseconds_since_the_first(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.csv", AZURE))
    assert found.arrival_us.tolist() == [0, 4_314_579, 4_541_977]
    assert found.input_tokens.tolist() == [374, 396, 879]
    assert found.output_tokens.tolist() == [44, 109, 55]
    assert set(found.tenant.tolist()) == {0}


def test_dates_with_a_zone_are_read_as_it_says(tmp_path: Path) -> None:
    rows = "2024-05-10 00:00:00.009930+00:00,1,1\n2024-05-10 02:00:01.009930+02:00,1,1\n"
    found = read(write(tmp_path / "a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows))
    assert found.arrival_us.tolist() == [0, 1_000_000]


def test_mooncake_ids_become_parts(tmp_path: Path) -> None:
    found = read(write(tmp_path / "m.jsonl", jsonl(MOONCAKE)))
    assert found.arrival_us.tolist() == [0, 40_000, 3_000_000]
    assert found.part_start.tolist() == [0, 3, 5, 7]
    assert found.parts.tolist() == [0, 1, 2, 0, 1, 0, 7]


@pytest.mark.parametrize(("text", "tenants"), [(SERVEGEN, [14, 6, 14]), (VTC, [0, 1])])
def test_client_traces_have_tenants(tmp_path: Path, text: str, tenants: list[int]) -> None:
    found = read(write(tmp_path / "c.csv", text))
    assert found.tenant.tolist() == tenants
    assert found.arrival_us[0] == 0


@pytest.mark.parametrize(
    "text",
    [
        SERVEGEN.replace("\n", "\r\n"),
        SERVEGEN.replace("\n", "\r"),
        "\ufeff" + SERVEGEN,
        "\n\n" + SERVEGEN.replace("\n", "\n\n") + "  \n",
        SERVEGEN.replace(",", ", "),
        SERVEGEN.replace(",", ";"),
        SERVEGEN.replace(",", "\t"),
        SERVEGEN.replace("23,2", "23.0,2.0"),
        SERVEGEN.replace("input_tokens", "num_prefill_tokens").replace("output_tokens", "num_decode_tokens"),
        "output_tokens,model,input_tokens,client,arrival_s\n2,m,23,14,0.0009\n228,m,636,6,0.0103\n5,m,9,14,.5\n",
        "arrival_s,client,input_tokens,output_tokens\n1.7e9,14,23,2\n1700000000.0094,6,636,228\n"
        "1700000000.4991,14,9,5\n",
    ],
)
def test_what_programs_write_otherwise_is_the_same_trace(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(text.encode())
    found = read(path)
    assert found.arrival_us.tolist() == [0, 9_400, 499_100]
    assert found.tenant.tolist() == [14, 6, 14]
    assert found.input_tokens.tolist() == [23, 636, 9]
    assert found.output_tokens.tolist() == [2, 228, 5]


def test_dates_may_have_any_fraction_or_none(tmp_path: Path) -> None:
    seconds = ("46", "46.5", "47.25", "48.125000", "48.1250001", "49.125000123")
    rows = "".join(f"2023-11-16 18:15:{s},1,1\n2023-11-16T18:15:{s}Z,1,1\n" for s in seconds)
    found = read(write(tmp_path / "a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows))
    after = [0, 500_000, 1_250_000, 2_125_000, 2_125_000, 3_125_000]
    assert found.arrival_us.tolist() == [micros for micros in after for _ in range(2)]


def test_json_rows_may_have_blank_lines_before_them_and_other_fields_and_whole_floats(tmp_path: Path) -> None:
    row = (
        '{"chat_id": 7, "output_length": 4.0, "hash_ids": [5], "input_length": 9.0, "timestamp": 1.7e12}\r\n'
    )
    found = read(write(tmp_path / "m.jsonl", "\ufeff\n" + row + "\n" + row))
    assert found.arrival_us.tolist() == [0, 0]
    assert found.input_tokens.tolist() == [9, 9]
    assert found.output_tokens.tolist() == [4, 4]


def test_ids_of_64_bits_stay_equal_and_different(tmp_path: Path) -> None:
    ids = [2**64 - 1, 2**63, 2**62 + 5, 2**64 - 1]
    rows = [{"timestamp": 0, "input_length": 2048, "output_length": 1, "hash_ids": ids}]
    parts = read(write(tmp_path / "m.jsonl", jsonl(rows))).parts.tolist()
    assert parts[0] == parts[3]
    assert len(set(parts)) == 3


def test_a_tenant_that_is_asked_for_has_the_number_that_its_requests_get(tmp_path: Path) -> None:
    text = "arrival_s,tenant,input_tokens,output_tokens\n0,ann,1,1\n1, bob,1,1\n2,7,1,1\n"
    trace = Trace(write(tmp_path / "c.csv", text))
    numbers = [trace.tenant(name) for name in ("bob", "ann", "7", "nobody")]
    assert joined(list(trace.batches())).tenant.tolist() == [numbers[1], numbers[0], 7]
    assert trace.tenant_names[numbers[0]] == "bob"


def test_tenants_with_names_keep_them(tmp_path: Path) -> None:
    text = "arrival_s,tenant,input_tokens,output_tokens\n0,ann,1,1\n1,bob,1,1\n2,ann,1,1\n3,7,1,1\n"
    trace = Trace(write(tmp_path / "c.csv", text))
    tenants = joined(list(trace.batches())).tenant.tolist()
    assert [trace.tenant_names.get(t, t) for t in tenants] == ["ann", "bob", "ann", 7]


def test_priority_is_a_band_counted_from_the_highest(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,priority\n0,1,1,8\n1,1,1,0\n2,1,1,-8\n"
    assert read(write(tmp_path / "c.csv", text)).band.tolist() == [0, 8, 16]


def test_gzip_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(AZURE.encode()))
    assert len(read(path)) == 3


def test_a_trace_can_be_read_again(tmp_path: Path) -> None:
    trace = Trace(write(tmp_path / "m.jsonl", jsonl(MOONCAKE)))
    first, second = joined(list(trace.batches())), joined(list(trace.batches()))
    assert first.arrival_us.tolist() == second.arrival_us.tolist()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_pipe_is_read_once_and_says_so(tmp_path: Path, *, compressed: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    text = (SERVEGEN + "".join(f"{i},6,9,9\n" for i in range(1, 30_000))).encode()
    writer = Thread(target=path.write_bytes, args=(gzip.compress(text) if compressed else text,))
    writer.start()
    trace = Trace(path)
    number = trace.tenant("6")
    found = joined(list(trace.batches()))
    writer.join()
    assert len(found) == 30_002
    assert found.input_tokens[:3].tolist() == [23, 636, 9]
    assert found.tenant[1] == number
    with pytest.raises(ConfigError, match="pipe: a pipe can be read once"):
        list(trace.batches())


def test_lines_a_little_out_of_order_are_sorted(tmp_path: Path) -> None:
    rows = "".join(f"{i + (1.5 if i % 7 == 0 else 0)},{i + 1},1\n" for i in range(20_000))
    found = read(write(tmp_path / "c.csv", "arrival_s,input_tokens,output_tokens\n" + rows))
    assert len(found) == 20_000
    assert (np.diff(found.arrival_us) >= 0).all()
    assert found.input_tokens.tolist() != sorted(found.input_tokens.tolist())


def test_lines_far_out_of_order_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"{i},1,1\n" for i in range(1, 20_000)) + "0,1,1\n"
    path = write(tmp_path / "c.csv", "arrival_s,input_tokens,output_tokens\n" + rows)
    with pytest.raises(ConfigError, match=r"c\.csv.*sort the file by arrival"):
        read(path)


HEADER = "arrival_s,input_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "line 1: header is 'a,b'; accepted: a column named one of timestamp"),
        ("arrival_s,input_tokens\n1,2\n", "line 1: header is .* named one of generatedtokens"),
        (HEADER + "0,1,1\n1,x,1\n", "line 3: input_tokens is 'x'; accepted: a whole number from 0 to"),
        (HEADER + "0,1,-1\n", "line 2: output_tokens is '-1'; accepted"),
        (HEADER + "0,1,1.5\n", "line 2: output_tokens is '1.5'; accepted"),
        (HEADER + f"0,{'9' * 5000},1\n", "line 2: input_tokens is '999.*9\\.\\.\\.; accepted"),
        (HEADER + "1e300,1,1\n", "line 2: arrival_s is '1e300'; accepted: seconds from 0"),
        (HEADER + "0,99999999999,1\n", "line 2: input_tokens is '99999999999'; accepted"),
        (HEADER + "0,1,1\nsoon,1,1\n", "line 3: arrival_s is 'soon'; accepted: seconds from 0"),
        (HEADER + "soon,1,1\n", "line 2: arrival_s is 'soon'; accepted: seconds, or a date"),
        (HEADER + "nan,1,1\n", "line 2: arrival_s is 'nan'; accepted: seconds from 0"),
        (HEADER + "-1,1,1\n", "line 2: arrival_s is '-1'; accepted: seconds from 0"),
        (HEADER + "0,1\n", "line 2: line is '0,1'; accepted: 3 values"),
        (HEADER, "there are no requests in it"),
        ("", "it is empty"),
        ("\n \r\n", "it is empty"),
        ("\n" + HEADER + "\n0,x,1\n", "line 4: input_tokens is 'x'"),
        (
            '[{"timestamp": 0, "input_length": 1, "output_length": 1}]\n',
            "line 1: line is .*; accepted: a JSON object",
        ),
        (HEADER.replace("\n", ",priority\n") + "0,1,1,9\n", "line 2: priority is '9'; accepted: .* -8 to 8"),
        ('{"timestamp": 0}\n', "line 1: input_length is None; accepted"),
        ('{"timestamp": "0"}\n', "line 1: timestamp is '0'; accepted: milliseconds"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1.5}\n', "line 1: output_length is 1.5"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timestamp"\n', "line 2: line is"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n[]\n', "line 2: line is '\\[\\]'"),
        (
            '{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [1, -2]}\n',
            "line 1: hash_ids is \\[1, -2\\]; accepted: a list of whole numbers",
        ),
        (
            '{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1, 2, 3]}\n',
            "line 1: len\\(hash_ids\\) is 3; accepted: at most 2 for 513 tokens in parts of 512",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "trace.csv", text)
    with pytest.raises(ConfigError, match=said) as caught:
        list(Trace(path).batches())
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_breaks_off_is_one_line(tmp_path: Path) -> None:
    whole = gzip.compress((HEADER + "0,1,1\n" * 50_000).encode())
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(whole[:-40])
    with pytest.raises(ConfigError, match=r"trace\.csv\.gz line \d+: "):
        list(Trace(path).batches())


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00\x80" * 100)
    with pytest.raises(ConfigError, match="cannot be read as text"):
        Trace(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Trace(tmp_path / "none.csv")
