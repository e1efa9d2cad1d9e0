"""How the bench of governance sets a gateway up, and what it makes of its figures."""

from __future__ import annotations

from pathlib import Path

from airi.config import load
from airi.config.cedar import check_policies
from airi.config.content import check_content
from benches.bench_governance import TENANTS, check_governed, config_text, governed_gateway, rows_of


def test_the_config_that_is_measured_is_one(tmp_path: Path) -> None:
    path = tmp_path / "airi.yaml"
    path.write_text(config_text(tmp_path, 8000, redis="redis://127.0.0.1:1"))
    file = load(path)
    check_policies(file)
    check_content(file)
    assert len(file.config.tenants) == TENANTS
    assert file.config.tenants[-1].limits.rpm_limit == 1


def test_a_governed_gateway_refuses_what_its_config_says() -> None:
    with governed_gateway(step_us=0, keys=1) as (target, limited, audit):
        check_governed(target, limited, audit)
        assert len(target.keys) == TENANTS - 1
        assert target.cpu_seconds() > 0


def test_figures_are_judged_by_the_median_turn_and_compared_with_the_plain_gateway() -> None:
    rows = rows_of(
        {
            "airi": {"not streamed": [0.2, 0.4, 0.3]},
            "airi, governed": {"not streamed": [0.5, 0.9, 0.6]},
            "other": {"not streamed": [15.0]},
        }
    )
    plain, governed, other = rows
    assert (governed["cpu_ms"], governed["to_plain"], governed["per_core_s"]) == (0.6, 2.0, 1667)
    assert governed["reached"]
    assert "reached" not in plain
    assert other["to_plain"] == 50.0
    assert not rows_of({"airi": {"not streamed": [1.0]}, "airi, governed": {"not streamed": [1.1]}})[1][
        "reached"
    ]
