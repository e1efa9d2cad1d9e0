"""Content rules on streams: what passes, what is held back and for how long, whatever the pieces."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi._core import guard
from airi.errors import ConfigError
from airi.policy._detectors import DETECTOR_GROUPS, DETECTORS
from airi.policy.content import ContentAction, ContentEvent, ContentFilter, ContentRule, ContentRules
from tests.guard.naive import NaivePattern, continuations, decided_and_open
from tests.guard.strategies import short_regexes
from tests.policy.samples import make_card, make_document, make_iban, make_words, naive_detector, naive_word

BLOCK, REDACT, ANNOTATE, AUDIT = (
    ContentAction.BLOCK,
    ContentAction.REDACT,
    ContentAction.ANNOTATE,
    ContentAction.AUDIT,
)


def rules(*given: ContentRule) -> ContentRules:
    return ContentRules(given)


def redact(*regexes: str, replacement: str = "#") -> ContentRules:
    return rules(ContentRule(name="r", action=REDACT, regexes=regexes, replacement=replacement))


def run(stream: ContentFilter, pieces: list[str]) -> tuple[str, list[ContentEvent]]:
    text = ""
    events: list[ContentEvent] = []
    for piece in pieces:
        passed = stream.push(piece)
        text += passed.text
        events += passed.events
    last = stream.finish()
    return text + last.text, events + list(last.events)


def naive_redacted(patterns: list[NaivePattern], text: str) -> str:
    """What is left where every match of every pattern is replaced by #, overlapping ones by one."""
    out, done = "", 0
    for start, end in sorted((s, -e) for pattern in patterns for s, e in pattern.matches(text)):
        if start >= done:
            out += text[done:start] + "#"
        done = max(done, -end)
    return out + text[done:]


@settings(max_examples=150)
@given(st.lists(short_regexes, min_size=1, max_size=3), st.text("ab1 é", max_size=16), st.data())
def test_what_passes_does_not_depend_on_the_pieces(
    regexes: list[str], text: str, data: st.DataObject
) -> None:
    try:
        content = redact(*regexes)
    except ConfigError:
        return
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
    passed, events = run(content.filter(), pieces)
    assert passed == naive_redacted([NaivePattern(regex=r) for r in regexes], text)
    assert (passed, tuple(events)) == content.check(text)[0]


@settings(max_examples=60)
@given(st.lists(short_regexes, min_size=1, max_size=2), st.text("ab1 ", max_size=6))
def test_nothing_is_given_out_that_some_continuation_would_redact(regexes: list[str], text: str) -> None:
    try:
        stream = redact(*regexes).filter()
    except ConfigError:
        return
    naive = [NaivePattern(regex=r) for r in regexes]
    given_out = "".join(stream.push(character).text for character in text)
    for more in continuations("ab12 -", 3):
        assert naive_redacted(naive, text + more).startswith(given_out)


@settings(max_examples=60)
@given(short_regexes, st.text("ab1 ", max_size=6))
def test_no_more_is_held_than_from_the_first_open_match_on(regex: str, text: str) -> None:
    try:
        stream = redact(regex).filter()
    except ConfigError:
        return
    for character in text:
        stream.push(character)
    for longest in (3, 5):
        _, first_open = decided_and_open(NaivePattern(regex=regex), text, continuations("ab12 -", longest))
        held = 0 if first_open is None else len(text) - first_open
        if stream.held_bytes == held:
            break
    assert stream.held_bytes == held


def test_a_block_ends_the_stream_before_the_match() -> None:
    content = rules(
        ContentRule(name="list", action=BLOCK, words=("forbidden word",)),
        ContentRule(name="mail", action=REDACT, detectors=("email",)),
    )
    stream = content.filter()
    text = "".join(stream.push(c).text for c in "To a@b.org: a Forbidden \n WORD, and more")
    assert text == "To [REDACTED]: a "
    assert stream.blocked == ContentEvent(rule="list", pattern="words[0]", action=BLOCK, start=14, end=30)
    assert stream.push("x").text == stream.finish().text == ""
    filtered, blocked = content.check("fine")
    assert (filtered.text, filtered.events, blocked) == ("fine", (), None)


def test_rules_that_only_tell_hold_nothing_back() -> None:
    content = rules(
        ContentRule(name="seen", action=AUDIT, detectors=("pii",)),
        ContentRule(name="told", action=ANNOTATE, regexes=(r"b\w+",)),
    )
    stream = content.filter()
    text = "Mail bob@example.org now"
    told: list[ContentEvent] = []
    for character in text:
        passed = stream.push(character)
        assert passed.text == character
        told += passed.events
    told += stream.finish().events
    assert {(e.rule, e.pattern, e.action, e.start, e.end) for e in told} == {
        ("seen", "email", AUDIT, 5, 20),
        ("told", "regexes[0]", ANNOTATE, 5, 8),
    }


def test_overlapping_matches_share_one_replacement() -> None:
    content = rules(
        ContentRule(name="first", action=REDACT, regexes=("abc",), replacement="<1>"),
        ContentRule(name="second", action=REDACT, regexes=("cde?",), replacement="<2>"),
    )
    for pieces in (["xabcdef"], list("xabcdef")):
        text, events = run(content.filter(), pieces)
        assert text == "x<1>f"
        assert [(e.rule, e.start, e.end) for e in events] == [("first", 1, 4), ("second", 3, 6)]


def test_offsets_of_events_are_bytes() -> None:
    _, events = run(redact("[é]b").filter(), ["aé", "é", "b"])
    assert [(e.start, e.end) for e in events] == [(3, 6)]


def test_halves_of_surrogate_pairs_pass() -> None:
    assert run(redact("ab").filter(), ["\ud83d", "a", "\ude00ab"])[0] == "\ud83da\ude00#"


def test_words_are_found_whole_in_any_case_and_alphabet() -> None:
    content = rules(
        ContentRule(name="w", action=REDACT, words=("größe", "c++", "два слова"), replacement="#")
    )
    assert content.check("GRÖẞE Größe, übergröße; größer C++ c++11 ДВА\u00a0\nСлова; GRÖSSE")[0].text == (
        "# #, übergröße; größer # c++11 #; #"
    )


FOUND = {
    "email": [
        "bob@example.org",
        "a.b+c@d-e.co.uk",
        "me@münchen.de",
        "ä@b.com",
        "jürgen@example.com",
        "мы@почта.рф",
    ],
    "payment_card": [
        "4111111111111111",
        "4111 1111 1111 1111",
        "3782-822463-10005",
        "4111\u201111111111-1111",
        "4111.1111.1111.1111",
        "4111 1111\n1111 \r\n1111",
        "3782.822463\n10005",
    ],
    "iban": [
        "DE89370400440532013000",
        "GB82 WEST 1234 5698 7654 32",
        "NO93 8601 1117 947",
        "de89 3704 0044 0532 0130 00",
    ],
    "us_ssn": ["219-09-9999", "078 05 1120"],
    "aws_access_key": ["AKIAIOSFODNN7EXAMPLE"],
    "github_token": ["ghp_" + "a1B2" * 9, "github_pat_" + "a1_B" * 8],
    "gitlab_token": ["glpat-" + "a1_-" * 5, "glpat-" + "a1_B" * 7 + ".0a.0a1b2c3d4"],
    "huggingface_token": ["hf_" + "aBcD" * 8 + "ef"],
    "google_api_key": ["AIza" + "a1_B-" * 7],
    "slack_token": ["xoxb-1234567890-abc"],
    "stripe_key": ["sk_live_" + "a1B2" * 5],
    "sk_key": ["sk-" + "a1B2" * 6, "sk-proj-" + "a_-b" * 9],
    "jwt": ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N"],
    "private_key": [
        "-----BEGIN PRIVATE KEY-----\nMIIEvQ==\n-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\\nabc\\n\\nDEF=\\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nabcd",
    ],
}
NOT_FOUND = {
    "email": ["bob@example", "@example.org", "bob at example.org", "x" * 65 + "@b.org"],
    "payment_card": [
        "4111 1111 1111 1112",
        "14111111111111111",
        "9111 1111 1111 1111",
        "4444 4444 4444 4444 4",
        "4.111111111111111",
        "\n".join("4111111111111111"),
    ],
    "iban": [
        "DE89370400440532013001",
        "DE8937040044053201300",
        "XX89370400440532013000",
        "De89370400440532013000",
    ],
    "us_ssn": ["666-09-9999", "900-09-9999", "000-09-9999", "219-00-9999", "219-09-0000", "1219-09-9999"],
    "aws_access_key": ["AKIAIOSFODNN7EXAMPL", "xAKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLEx"],
    "github_token": ["ghp_" + "a1B2" * 8, "ghx_" + "a1B2" * 9],
    "gitlab_token": ["glpat-" + "a1_-" * 4, "xglpat-" + "a1_-" * 5],
    "huggingface_token": ["hf_" + "aBcD" * 7, "hf_hub_" + "aBcD" * 3],
    "google_api_key": ["AIza" + "a1_B-" * 6],
    "slack_token": ["xoxq-1234567890-abc"],
    "stripe_key": ["sk_live_short"],
    "sk_key": ["sk-short", "task-" + "a1B2" * 6],
    "jwt": ["eyJhbGciOiJIUzI1NiJ9.abc"],
    "private_key": ["-----BEGIN PUBLIC KEY-----\nMIIEvQ=="],
}


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_a_detector_finds_what_it_is_for_and_no_more(name: str) -> None:
    content = rules(ContentRule(name="d", action=REDACT, detectors=(name,), replacement="#"))
    for example in FOUND[name]:
        assert content.check(f"(Here: {example})!")[0].text == "(Here: #)!"
        assert run(content.filter(), list(f"{example} and"))[0] == "# and"
    for example in NOT_FOUND[name]:
        assert content.check(f"(Here: {example})!")[0].text == f"(Here: {example})!"


def test_a_longer_number_that_is_no_card_does_not_hide_one_within() -> None:
    content = rules(ContentRule(name="d", action=REDACT, detectors=("payment_card", "iban"), replacement="#"))
    assert content.check("No. 23 4111 1111 1111 1111 12")[0].text == "No. 23 # 12"
    assert content.check("5 4111 1111 1111 1111")[0].text == "5 #"
    assert content.check("DE89 3704 0044 0532 0130 00 IS MINE")[0].text == "# IS MINE"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detectors": ("emial",)}, "content rule 'x': no detector 'emial'; known are aws_access_key, "),
        ({}, "content rule 'x': one of detectors, words and regexes must be given"),
        ({"words": ("a", " ")}, r"content rule 'x': words\[1\] is empty"),
    ],
)
def test_a_wrong_rule_is_refused_in_one_line(options: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}[^\n]*$"):
        ContentRule(name="x", action=BLOCK, **options)  # type: ignore[arg-type]


def test_a_wrong_pattern_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^content rules: pattern 'r.regexes\[1\]', character 2: [^\n]*$"):
        redact("a", "b(")
    with pytest.raises(
        ConfigError, match=r"^content rules: pattern 'r.regexes\[0\]' takes more than 100 states$"
    ):
        ContentRules([ContentRule(name="r", action=BLOCK, regexes=("[ab]*a[ab]{9}",))], max_states=100)


def test_the_digest_names_rules_and_what_they_do() -> None:
    assert redact("ab").digest == redact("ab").digest
    assert len({redact("ab").digest, redact("ac").digest, redact("ab", replacement="!").digest}) == 3


def check_documents(count: int, seed: int) -> int:
    """Random documents, cut at random bytes, against `re`: nothing missed, nothing given out too early."""
    rng = random.Random(seed)
    words = make_words(rng, 20)
    content = rules(
        ContentRule(name="d", action=REDACT, detectors=tuple(DETECTOR_GROUPS)),
        ContentRule(name="w", action=BLOCK, words=tuple(words)),
    )
    naive = [naive_detector(t.pattern) for t in content.targets if t.pattern in DETECTORS]
    naive += [naive_word(word) for word in words]
    scanner = guard.Scanner(content.automaton)
    total = 0
    for _ in range(count):
        text = make_document(rng, words)
        data = text.encode()
        offset = [len(text[:i].encode()) for i in range(len(text) + 1)]
        expected = {
            (i, offset[s], offset[e]) for i, pattern in enumerate(naive) for s, e in pattern.matches(text)
        }
        scanner.reset()
        found: set[tuple[int, int, int]] = set()
        cuts = sorted(rng.choices(range(len(data) + 1), k=rng.randrange(12)))
        for start, end in pairwise([0, *cuts, len(data)]):
            found.update(scanner.feed(data[start:end]))
            limit = end if scanner.open_start is None else scanner.open_start
            assert all(match in found for match in expected if match[1] < limit)
        found.update(scanner.finish())
        assert found == expected
        total += len(found)
    return total


def test_random_documents_are_searched_as_re_searches_them() -> None:
    assert check_documents(1500, seed=1) > 1500


@pytest.mark.slow  # 260 s
@pytest.mark.timeout(900)
def test_a_hundred_thousand_documents_are_searched_as_re_searches_them() -> None:
    assert check_documents(100_000, seed=2) > 100_000


def test_made_cards_and_accounts_are_found() -> None:
    rng = random.Random(3)
    content = rules(ContentRule(name="d", action=REDACT, detectors=("pii",), replacement="#"))
    for _ in range(200):
        assert content.check(f"{make_card(rng)}, {make_iban(rng)}.")[0].text == "#, #."
