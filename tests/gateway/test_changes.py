"""What `auto` bounds go by is compared once, tried again where that failed, and holds no process up that ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airi import builtin
from airi.config.changes import change_between
from airi.gateway import changes
from airi.gateway.changes import Changes
from airi.lifecycle.gates import Change
from tests.lifecycle.world import version

PAIR = [(version("m", "1"), version("m", "2"))]


async def told(compared: Changes) -> Change:
    async with asyncio.timeout(60):
        while (found := compared.of(PAIR)) is None:
            await asyncio.sleep(0.001)
    return found


async def test_versions_are_compared_once_both_are_here() -> None:
    folders: list[Path | None] = [None]
    compared = Changes(lambda _: folders[0])
    assert compared.of(PAIR) is None
    folders[0] = builtin.path()
    assert await told(compared) is Change.SAME_WEIGHTS
    assert compared.of([(PAIR[0][0], PAIR[0][0])]) is Change.SAME_WEIGHTS
    await compared.close()


async def test_what_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Exception] = [RuntimeError("broken"), MemoryError()]

    def between(before: Path, after: Path, stopped: Callable[[], bool]) -> Change:
        if said:
            raise said.pop()
        return Change.FINETUNE

    monkeypatch.setattr(changes, "change_between", between)
    monkeypatch.setattr(changes, "_AGAIN_S", 0.01)
    compared = Changes(lambda _: builtin.path())
    assert await told(compared) is Change.FINETUNE
    assert said == []
    await compared.close()


async def test_the_end_of_a_process_ends_the_thread_that_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def between(before: Path, after: Path, stopped: Callable[[], bool]) -> Change:
        while not stopped():
            time.sleep(0.001)
        ended.append(True)
        raise InterruptedError

    monkeypatch.setattr(changes, "change_between", between)
    compared = Changes(lambda _: builtin.path())
    assert compared.of(PAIR) is None
    await asyncio.sleep(0.01)
    await compared.close()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert ended == [True]


def test_files_are_read_no_further_once_it_is_stopped() -> None:
    with pytest.raises(InterruptedError):
        change_between(builtin.path(), builtin.path(), lambda: True)
