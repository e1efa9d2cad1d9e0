"""What is encoded on one side is what the other side decodes."""

from __future__ import annotations

import inspect

import msgspec
import pytest

import airi.errors
from airi.errors import AiriError, ContextLengthError, RequestError, error_from_code
from airi.outputs import ErrorInfo, Output, TokenLogprobs
from airi.sampling_params import SamplingParams
from airi.transport import messages as m


def test_a_request_survives_the_wire() -> None:
    request = m.GenerateRequest(
        model="a",
        tokens=m.GenerateRequest.pack_tokens([1, 2, 2**31 - 1]),
        params=SamplingParams(temperature=0, logit_bias={3: 1.5}, stop=("x",), seed=2**64 - 1),
        timeout_us=5,
        cache_salt=b"s",
        metered=True,
    )
    assert m.decode_client_message(m.encode(request)) == request
    assert request.num_tokens == 3


@pytest.mark.parametrize(
    "message",
    [
        m.Hello(),
        m.Cancel([1, 2]),
        m.SetTenant(1, 3, 0.5),
        m.SetTenant(1, 3, 0.5, 0.25),
        m.Sleep(2, "a"),
        m.Wake(3, "a"),
        m.Explain(4, 5),
    ],
)
def test_client_messages_survive_the_wire(message: m.ClientMessage) -> None:
    assert m.decode_client_message(m.encode(message)) == message


def test_request_ids_are_unique_by_default() -> None:
    ids = [m.GenerateRequest(model="a", tokens=b"", params=SamplingParams()).request_id for _ in range(3)]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    "message",
    [
        m.Progress("a", "weights", 1.0, 2.0),
        m.Welcome("id", 1, [m.ModelInfo(name="a", path="/a", max_model_len=8, vocab_size=4, aliases=("b",))]),
        m.Failed(ErrorInfo("invalid_checkpoint", "no config.json")),
        m.Outputs(
            b"\1" * 8,
            b"\2" * 4,
            [Output(1, [2], "stop", 2, [TokenLogprobs(2, -0.5, 1, [2], [-0.5])], [None])],
        ),
        m.EngineStats([m.ModelStats(name="a", running=3)]),
        m.Goodbye(),
        m.Reply(4, ErrorInfo("invalid_config", "weight is 0")),
        m.Reply(5, lines=["a", "b"]),
    ],
)
def test_engine_messages_survive_the_wire(message: m.EngineMessage) -> None:
    assert m.decode_engine_message(m.encode(message)) == message


def test_a_request_with_invalid_parameters_is_refused_at_decoding() -> None:
    request = m.GenerateRequest(model="a", tokens=b"", params=SamplingParams(temperature=0.5))
    frame = m.encode(request).replace(b"\xcb\x3f\xe0\0\0\0\0\0\0", b"\xcb\xbf\xe0\0\0\0\0\0\0")
    with pytest.raises(msgspec.ValidationError, match="temperature"):
        m.decode_client_message(frame)


def test_every_error_class_survives_the_wire() -> None:
    for name, cls in inspect.getmembers(airi.errors, inspect.isclass):
        if issubclass(cls, AiriError) and "code" in vars(cls):  # a ConfigFileError arrives as a ConfigError
            error = error_from_code(cls.code, "text", "field")
            assert type(error) is cls, name
            assert str(m.error_of(m.error_info(error))) == "text"
    assert isinstance(m.error_of(m.error_info(ContextLengthError("x", field="prompt"))), RequestError)
    assert type(error_from_code("from_the_future", "text")) is AiriError


def test_merging_outputs_is_what_two_reads_would_have_given() -> None:
    logprobs = [TokenLogprobs(4, -1.0, 1)]
    first = Output(1, [4], num_prompt_tokens=3, num_cached_tokens=2, logprobs=logprobs, device_us=30)
    logprobs = [TokenLogprobs(5, -2.0, 2)]
    first.merge(Output(1, [5], "stop", 5, logprobs=logprobs, num_generated_tokens=2, device_us=12))
    assert first.tokens == [4, 5]
    assert first.logprobs is not None
    assert [entry.token for entry in first.logprobs] == [4, 5]
    assert (first.finish_reason, first.stop_token, first.num_prompt_tokens) == ("stop", 5, 3)
    assert first.device_us == 42
