"""Memory and cores, with and without container limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airi.engine import resources
from airi.engine.resources import available_memory, usable_cores


def test_available_memory_is_a_plausible_amount() -> None:
    assert 16 * 2**20 < available_memory() < 2**50


def test_usable_cores_are_some_and_no_more_than_this_process_has() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 1.5), ("max 100000", None), ("", None)])
def test_a_quota_is_read_from_its_file(tmp_path: Path, text: str, cores: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert resources._quota_v2(str(tmp_path / "cpu.max")) == cores


def test_an_older_quota_is_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    for quota, cores in (("250000", 2.5), ("-1", None)):
        (tmp_path / "cpu.cfs_quota_us").write_text(quota)
        assert resources._quota_v1(str(tmp_path)) == cores
    assert resources._quota_v1(str(tmp_path / "none")) is None


def test_cached_files_of_a_control_group_count_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 30\nactive_file 12\n")
    assert resources._page_cache(str(tmp_path / "memory.stat")) == 42
    assert resources._page_cache(str(tmp_path / "none")) == 0
