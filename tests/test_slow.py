"""The list of what takes long: made by durations, and of tests that there are."""

from __future__ import annotations

from pathlib import Path

from tools.slow_tests import chosen

ROOT = Path(__file__).parent.parent
DURATIONS = """\
12:00:01 3.00s call     tests/a/test_a.py::test_cases[long]
12:00:01 0.40s call     tests/a/test_a.py::test_cases[short]
12:00:01 0.60s call     tests/a/test_a.py::test_cases[a b]
0.70s call     tests/a/test_a.py::test_both[one]
0.80s call     tests/a/test_a.py::test_both[two]
2.10s call     tests/a/test_a.py::test_long
2.20s call     tests/a/test_a.py::test_long_cases[one]
2.30s call     tests/a/test_a.py::test_long_cases[two]
9.90s setup    tests/a/test_a.py::test_short
9.90s call     tests/core/test_kept.py::test_kept
"""


def test_one_case_of_each_test_stays_unless_all_are_long() -> None:
    assert chosen(DURATIONS) == [
        "tests/a/test_a.py::test_both[two]",
        "tests/a/test_a.py::test_cases[a b]",
        "tests/a/test_a.py::test_cases[long]",
        "tests/a/test_a.py::test_long",
        "tests/a/test_a.py::test_long_cases",
    ]


def test_each_name_on_the_list_is_one_of_a_test() -> None:
    lines = (ROOT / "tests" / "slow.txt").read_text().splitlines()
    names = {line.partition("[")[0] for line in lines if not line.startswith("#")}
    assert len(names) > 100
    sources: dict[str, str] = {}
    for name in sorted(names):
        path, _, test = name.partition("::")
        source = sources.setdefault(path, (ROOT / path).read_text())
        part = test.rpartition("::")[2]
        assert f"def {part}(" in source or test.partition("::")[0] in source, name
