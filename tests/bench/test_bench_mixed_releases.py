"""The bench of mixed releases finds them where pinning is switched off, and none where it is not."""

from __future__ import annotations

from benches.bench_mixed_releases import measure


def test_pinning_is_what_keeps_releases_apart() -> None:
    pinned, unpinned = (measure(10, 5000, pins=pins) for pins in (True, False))
    assert pinned["requests"] == unpinned["requests"] == 5000
    assert pinned["mixed"] == 0
    assert pinned["kills"] > 0
    assert pinned["answered by r2"] > 500
    assert unpinned["mixed"] > 100
