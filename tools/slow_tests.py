"""Chooses what tests/slow.txt lists, by how long tests took: what no list names runs in `make test`.

    python -m pytest -m "not gpu" --durations=0 --durations-min=0.1 | tee durations.txt
    python -m tools.slow_tests durations.txt > tests/slow.txt

Of a test with several cases the quickest stays, of the others those that take half a second go. A test that takes two
seconds in its quickest case goes whole, unless it is one of `KEPT`: what nothing quicker would notice. What fixtures
take is not counted: most of them serve a file, and would only be paid for by its next test.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

LONGEST_CASE_S = 0.5
LONGEST_S = 2.0
KEPT = (
    "tests/core/",
    "tests/guard/",
    "tests/llm/",
    "tests/policy/test_",
    "tests/retrieval/",
    "tests/gateway/test_forbidden_served.py::test_answers_hold_no_forbidden_text_and_are_verified",
    "tests/kernels/test_compile_gate.py::test_what_a_llama_3_8b_runs_in_bfloat16_passes",
    "tests/kernels/test_sample.py::test_a_row_depends_on_itself_alone",
    "tests/gateway/test_drain.py::test_a_signal_under_load_drains_the_streams_and_exits_with_0",
    "tests/gateway/test_parity_http.py::test_an_engine_killed_under_fifty_streams_leaves_a_server_that_works",
    "tests/gateway/test_retrieval_shadowed.py::test_a_candidate_that_finds_the_same_rows_passes",
    "tests/gateway/test_retrieval_served.py::test_a_rollout_of_the_embedder_moves_queries_between_spaces_that_never_meet",
    "tests/gateway/test_retrieval_served.py::test_policies_say_who_reads_which_rows",
    "tests/gateway/test_rollouts_served.py::test_traffic_moves_by_the_steps_and_the_candidate_becomes_stable",
    "tests/packaging/test_readme.py::test_python_blocks_run",
    "tests/packaging/test_stubs.py::test_stubs_match_the_compiled_core",
    "tests/policy/ledger/test_crashes.py::test_a_process_that_ends_at_any_moment_forgets_no_money",
    "tests/policy/ledger/test_properties.py::test_the_in_process_ledger_is_what_a_log_of_everything_says",
    "tests/routing/test_replicas_served.py::test_a_gateway_before_three_engines_outlives_two_of_them",
)
HEADER = """\
# What takes long and runs in `make test-all` alone, beside what is marked slow where it stands: cases, or all cases of
# a test. Made by tools/slow_tests.py, which says how they are chosen.
"""
_LINE = re.compile(r"\s*([\d.]+)s call +(tests/\S+?::.*)")


def chosen(log: str) -> list[str]:
    """Names of cases, or of tests whose cases all go, by the durations in a log of pytest."""
    tests: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for line in log.splitlines():
        if match := _LINE.search(line):
            tests[match[2].partition("[")[0]][match[2].rstrip()] += float(match[1])
    found = []
    for test, cases in tests.items():
        quickest = min(cases, key=lambda case: cases[case])
        if cases[quickest] >= LONGEST_S and not test.startswith(KEPT):
            found.append(test)
        else:
            found += [case for case, took in cases.items() if took >= LONGEST_CASE_S and case != quickest]
    return sorted(found)


def main() -> None:
    """As the module says."""
    sys.stdout.write(HEADER + "".join(f"{name}\n" for name in chosen(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
