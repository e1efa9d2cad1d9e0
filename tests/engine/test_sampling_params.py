"""SamplingParams accepts what it documents and names the field of what it does not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from airi.errors import RequestError
from airi.sampling_params import MAX_SEED, SamplingParams


def test_defaults_are_valid_and_sample_at_temperature_one() -> None:
    params = SamplingParams()
    assert params.temperature == 1.0
    assert params.max_tokens is None
    assert not params.greedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", True),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("min_tokens", -1),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", -2),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-50),
        ("repetition_penalty", 1e-40),
        ("repetition_penalty", 101),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", [1]),
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
        ("logprobs", 101),
        ("prompt_logprobs", -1),
        ("stop", ("",)),
        ("stop", ("x",) * 65),
        ("stop", 7),
        ("stop_token_ids", (1, -1)),
        ("ignore_eos", 1),
    ],
)
def test_a_value_out_of_range_names_its_field(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field


def test_min_tokens_above_max_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="more than max_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_errors_do_not_show_strings() -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(temperature="a private text")  # type: ignore[arg-type]
    assert "private" not in str(caught.value)


def test_accepted_spellings_are_brought_to_one_form() -> None:
    params = SamplingParams(temperature=0, top_k=-1, stop="END", stop_token_ids=[3], seed=-1)  # type: ignore[arg-type]
    assert params.greedy
    assert isinstance(params.temperature, float)
    assert params.top_k == 0
    assert params.stop == ("END",)
    assert params.stop_token_ids == (3,)
    assert params.seed == MAX_SEED


def test_each_choice_has_its_own_seed() -> None:
    params = SamplingParams(n=3, seed=MAX_SEED)
    choices = [params.for_choice(i) for i in range(3)]
    assert [c.seed for c in choices] == [MAX_SEED, 0, 1]
    assert all(c.n == 1 for c in choices)
    assert SamplingParams(n=2).for_choice(1).seed is None
