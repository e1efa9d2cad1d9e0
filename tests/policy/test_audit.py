"""Every decision is a line of its own in the audit log, whoever else writes to it."""

from __future__ import annotations

import json
import resource
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airi.errors import AuditUnavailableError, ConfigError
from airi.policy import Principal
from airi.policy.audit import AuditLog
from airi.policy.decisions import Decision, Resource

ACME = Principal(tenant="acme", number=1, key_id="k7", claims={"email": "somebody@example.com"})
GENERAL = Resource("Model", "general")
YES = Decision(allowed=True, policies=("gold",))


def test_a_line_says_who_did_what_and_why_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, now=lambda: 1_700_000_000.25)
    log.note("req-1", ACME, "chat", GENERAL, YES)
    log.note_limit("req-2", ACME, "chat", GENERAL, "rpm_limit", "tenant 'acme', model 'general'")
    log.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {
        "time": "2023-11-14T22:13:20.250000Z",
        "request_id": "req-1",
        "tenant": "acme",
        "key_id": "k7",
        "action": "chat",
        "resource": "Model::general",
        "allowed": True,
        "policies": ["gold"],
    }
    del first["policies"]
    assert second == first | {
        "request_id": "req-2",
        "allowed": False,
        "limit": "rpm_limit",
        "scope": "tenant 'acme', model 'general'",
    }


def test_a_denial_by_a_policy_that_failed_names_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.note("req-1", ACME, "chat", GENERAL, Decision(allowed=False, errors=("sum",)))
    log.close()
    line = json.loads(path.read_text())
    assert (line["allowed"], line["errors"], "policies" in line) == (False, ["sum"], False)


def test_callers_that_nobody_knows_share_a_line_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "audit.jsonl", [1_700_000_000.0]
    log = AuditLog(path, now=lambda: clock[0])
    secret = "s" * 43
    for tenth in range(25):
        clock[0] = 1_700_000_000 + tenth / 10
        log.note_unknown(f"req-{tenth}", f"Bearer sk-airi-abcdefghij12-{secret}" if tenth < 10 else "Basic x")
    log.close()
    assert secret not in path.read_text()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all((line["action"], line["allowed"]) == ("authenticate", False) for line in lines)
    assert [(line.get("request_id"), line.get("key_id"), line.get("more", 0)) for line in lines] == [
        ("req-0", "abcdefghij12", 0),
        ("req-10", None, 9),
        ("req-20", None, 9),
        (None, None, 3),
    ]
    assert sum(1 + line.get("more", 0) for line in lines) == 25


def test_the_file_is_its_owners_and_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for request_id in ("a", "b"):
        log = AuditLog(path)
        log.note(request_id, ACME, "chat", GENERAL, YES)
        log.close()
    assert [json.loads(line)["request_id"] for line in path.read_text().splitlines()] == ["a", "b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_that_was_rotated_goes_on_in_a_new_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, rotated = tmp_path / "logs" / "audit.jsonl", tmp_path / "audit.jsonl.1"
    path.parent.mkdir()
    log = AuditLog(path)
    log.note("a", ACME, "chat", GENERAL, YES)
    path.rename(rotated)
    log.note("b", ACME, "chat", GENERAL, YES)
    log.reopen()
    log.note("c", ACME, "chat", GENERAL, YES)

    def ids(file: Path) -> list[str]:
        return [json.loads(line)["request_id"] for line in file.read_text().splitlines()]

    assert (ids(rotated), ids(path)) == (["a", "b"], ["c"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.rename(rotated)
    path.parent.rmdir()
    log.reopen()
    log.note("d", ACME, "chat", GENERAL, YES)
    log.close()
    assert ids(rotated) == ["c", "d"], "what cannot be opened again is written on"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the audit log {path} cannot be opened again, the file before goes on: No such file or directory"
    )


def test_lines_of_many_writers_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    logs = [AuditLog(path) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        for index in range(400):
            pool.submit(logs[index % 4].note, f"req-{index}", ACME, "chat", GENERAL, YES)
    found = {json.loads(line)["request_id"] for line in path.read_text().splitlines()}
    assert found == {f"req-{index}" for index in range(400)}


def test_a_file_that_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^audit is .*nowhere.*; it cannot be written: No such file"):
        AuditLog(tmp_path / "nowhere" / "audit.jsonl")


def test_a_full_disk_is_told_once_in_the_log_and_each_time_to_who_asks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = AuditLog(Path("/dev/full"))
    for _ in range(3):
        with pytest.raises(AuditUnavailableError, match="cannot be written: No space left"):
            log.note("req-1", ACME, "chat", GENERAL, YES)
    (record,) = caplog.records
    assert record.getMessage() == (
        "the audit log /dev/full cannot be written, calls are refused: No space left on device"
    )
    assert record.exc_info is None


def test_after_a_line_that_was_cut_short_lines_are_whole_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (50, hard)
        )  # this process's files; Python ignores the signal
        for _ in range(2):
            with pytest.raises(AuditUnavailableError):
                log.note("req-1", ACME, "chat", GENERAL, YES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for request_id in ("req-2", "req-3"):
        log.note(request_id, ACME, "chat", GENERAL, YES)
    log.close()
    cut, *whole = path.read_text().splitlines()
    assert len(cut) == 50
    assert [json.loads(line)["request_id"] for line in whole] == ["req-2", "req-3"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
