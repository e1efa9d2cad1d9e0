"""The Open Inference Protocol over gRPC: the same calls as over HTTP."""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from airi import __version__
from airi.errors import ConfigError
from airi.gateway.kserve.grpc.messages import SERVICE, message
from airi.gateway.kserve.grpc.server import GrpcServer
from airi.gateway.options import AppOptions
from airi.text import Tokenizer
from airi.transport.stub import StubOptions

from .conftest import ANSWER, Gateway, StartGateway, serve_process, starter, stub_engine, wait_until

KEY = "sk-grpc"


@contextmanager
def channel_to(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{gateway.listening.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def channel(
    model_folder: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[grpc.Channel]:
    with (
        starter(model_folder, tokenizer, tmp_path_factory.mktemp("gateway")) as start,
        channel_to(start(grpc_port=0)) as channel,
    ):
        yield channel


def call(
    channel: grpc.Channel, method: str, *, metadata: Sequence[tuple[str, str]] = (), **fields: Any
) -> Any:
    made = channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=message(f"{method}Request").SerializeToString,
        response_deserializer=message(f"{method}Response").FromString,
    )
    return made(message(f"{method}Request")(**fields), metadata=metadata, timeout=30)


def tensor(*texts: str) -> dict[str, Any]:
    contents = {"bytes_contents": [text.encode() for text in texts]}
    return {"name": "text_input", "datatype": "BYTES", "shape": [len(texts)], "contents": contents}


def packed(*texts: str) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def infer(channel: grpc.Channel, *, model_name: str = "tiny", tokens: int = 8, **fields: Any) -> Any:
    request = {"inputs": [tensor("Hi", "What is it?")], "parameters": {"max_tokens": {"int64_param": tokens}}}
    return call(channel, "ModelInfer", model_name=model_name, **{**request, **fields})


def refused(channel: grpc.Channel, method: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, **fields)
    return caught.value.code(), caught.value.details()


def test_contents_are_answered_by_contents(channel: grpc.Channel, tokenizer: Tokenizer) -> None:
    count = len(tokenizer.encode(ANSWER, add_special_tokens=False))
    outputs = [{"name": name} for name in ("text_output", "num_output_tokens", "finish_reason")]
    done = infer(channel, tokens=count, id="mine", outputs=outputs)
    assert (done.model_name, done.model_version, done.id) == ("tiny", "1", "mine")
    text, tokens, reason = done.outputs
    assert (text.name, text.datatype, list(text.shape)) == ("text_output", "BYTES", [2])
    assert list(text.contents.bytes_contents) == [ANSWER.encode()] * 2
    assert list(tokens.contents.int_contents) == [count, count]
    assert list(reason.contents.bytes_contents) == [b"length"] * 2
    assert not done.raw_output_contents


def test_raw_tensors_are_answered_raw(channel: grpc.Channel) -> None:
    bare = {"name": "text_input", "datatype": "BYTES", "shape": [2]}
    done = infer(
        channel,
        tokens=3,
        inputs=[bare],
        raw_input_contents=[packed("Hi", "Ünïcode")],
        outputs=[{"name": "num_output_tokens"}, {"name": "finish_reason"}],
    )
    assert list(done.raw_output_contents) == [struct.pack("<ii", 3, 3), packed("length", "length")]
    assert not any(output.HasField("contents") for output in done.outputs)


def test_every_kind_of_parameter_is_taken(channel: grpc.Channel) -> None:
    parameters = {
        "max_tokens": {"uint64_param": 4},
        "temperature": {"double_param": 0.5},
        "ignore_eos": {"bool_param": True},
        "stop": {"string_param": "never there"},
    }
    done = infer(channel, parameters=parameters, outputs=[{"name": "num_output_tokens"}])
    assert list(done.outputs[0].contents.int_contents) == [4, 4]


def test_the_server_says_what_it_is_and_serves(channel: grpc.Channel) -> None:
    assert call(channel, "ServerLive").live
    assert call(channel, "ServerReady").ready
    assert call(channel, "ModelReady", name="tiny").ready
    server = call(channel, "ServerMetadata")
    assert (server.name, server.version) == ("airi", __version__)
    model = call(channel, "ModelMetadata", name="tiny-alias")
    assert (model.name, list(model.versions), model.platform) == ("tiny-alias", ["1"], "airi")
    assert [(each.name, list(each.shape)) for each in model.inputs] == [("text_input", [-1])]
    [entry] = call(channel, "RepositoryIndex", ready=True).models
    assert (entry.name, entry.version, entry.state) == ("tiny", "1", "READY")


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"model_name": "other"}, grpc.StatusCode.NOT_FOUND, "model: 'other' is not served here"),
        (
            {"parameters": {"max_token": {"int64_param": 3}}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "parameters.max_token: is an unknown parameter",
        ),
        (
            {"raw_input_contents": [b"", b""]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "raw_input_contents: has 2 tensors; accepted: 1, as inputs",
        ),
        (
            {"raw_input_contents": [packed("Hi")[:-1]]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "raw_input_contents[0]: ends within a text",
        ),
        (
            {"raw_input_contents": [b"\x01\x00"]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "raw_input_contents[0]: ends within a text",
        ),
        (
            {"raw_input_contents": [b"\x01\x00\x00\x00\xff"]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "inputs[0]: is not UTF-8",
        ),
        ({"inputs": []}, grpc.StatusCode.INVALID_ARGUMENT, "inputs: "),
    ],
)
def test_refusals_are_statuses(
    channel: grpc.Channel, fields: dict[str, Any], code: grpc.StatusCode, message: str
) -> None:
    found, said = refused(channel, "ModelInfer", **{"model_name": "tiny", "inputs": [tensor("Hi")], **fields})
    assert (found, said.startswith(message)) == (code, True), said


def test_keys_come_as_metadata(start_gateway: StartGateway) -> None:
    with channel_to(start_gateway(app=AppOptions(api_keys=(KEY,)), grpc_port=0)) as channel:
        assert call(channel, "ServerLive").live
        code, said = refused(channel, "ModelMetadata", name="tiny")
        assert (code, "API key" in said) == (grpc.StatusCode.UNAUTHENTICATED, True)
        assert (
            "API key" in refused(channel, "ModelMetadata", name="tiny", metadata=[("authorization", "no")])[1]
        )
        given = [("authorization", f"Bearer {KEY}"), ("x-request-id", "mine")]
        assert call(channel, "ModelMetadata", name="tiny", metadata=given).name == "tiny"


def test_a_caller_that_hangs_up_ends_its_call(start_gateway: StartGateway) -> None:
    gateway = start_gateway(step_us=20_000, grpc_port=0)
    with channel_to(gateway) as channel:
        made = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=message("ModelInferRequest").SerializeToString,
            response_deserializer=message("ModelInferResponse").FromString,
        )
        parameters = {"max_tokens": {"int64_param": 400}}
        request = message("ModelInferRequest")(
            model_name="tiny", inputs=[tensor("Hi")], parameters=parameters
        )
        future = made.future(request, timeout=60)
        wait_until(lambda: gateway.stub.num_running == 1, "the call does not run")
        future.cancel()
        wait_until(lambda: gateway.stub.num_running == 0, "the call runs on")


def test_a_call_that_runs_is_answered_while_the_server_drains(model_folder: Path, tmp_path: Path) -> None:
    done: list[Any] = []
    options = StubOptions(
        endpoint=f"ipc://{tmp_path}/engine", model_path=str(model_folder), name="tiny", step_us=20_000
    )
    with (
        stub_engine(options) as stub,
        serve_process("--engine", options.endpoint, "--grpc-port", "0") as (process, _, said),
    ):
        [port] = [found[1] for line in said if (found := re.search(r"gRPC at port (\d+)", line))]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            running = threading.Thread(target=lambda: done.append(infer(channel, tokens=60)))
            running.start()
            wait_until(lambda: stub.num_running > 0, "the call does not run")
            process.terminate()
            running.join()
            assert process.wait(60) == 0
    assert all(done[0].outputs[0].contents.bytes_contents)


async def test_a_port_that_is_taken_is_named() -> None:
    first = GrpcServer("127.0.0.1", 0, body_limit=1 << 20)
    try:
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 grpc_port {first.port}"):
            GrpcServer("127.0.0.1", first.port, body_limit=1 << 20)
    finally:
        await first.close()
