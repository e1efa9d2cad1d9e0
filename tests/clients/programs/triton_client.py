"""Triton's own clients of the Open Inference Protocol, over HTTP with tensors as JSON, and over gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def client(url: str) -> InferenceServerClient:
    return InferenceServerClient(url.removeprefix("http://").removesuffix("/v1"), network_timeout=60)


def headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def prompts(*texts: str) -> InferInput:
    tensor = InferInput("text_input", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=object), binary_data=False)
    return tensor


def infer(url: str, key: str, *texts: str, model: str = "tiny", **parameters: Any) -> Any:
    outputs = [InferRequestedOutput(name, binary_data=False) for name in ("text_output", "num_output_tokens")]
    return client(url).infer(
        model,
        [prompts(*texts)],
        outputs=outputs,
        request_id="mine",
        parameters=parameters,
        headers=headers(key),
    )


def check_it_is_live_and_ready(url: str, key: str) -> None:
    api = client(url)
    assert api.is_server_live()
    assert api.is_server_ready()
    assert api.is_model_ready("tiny", headers=headers(key))
    assert not api.is_model_ready("other", headers=headers(key))


def check_metadata_and_the_index_name_the_model(url: str, key: str) -> None:
    api = client(url)
    assert api.get_server_metadata(headers=headers(key))["name"] == "airi"
    model = api.get_model_metadata("tiny", headers=headers(key))
    assert [tensor["name"] for tensor in model["inputs"]] == ["text_input"]
    assert model["versions"] == ["1"]
    index = api.get_model_repository_index(headers=headers(key))
    assert {entry["name"]: entry["state"] for entry in index} == {"airi-demo": "READY", "embedder": "READY"}


def check_a_batch_of_prompts_is_answered(url: str, key: str) -> None:
    done = infer(url, key, "Hello", "The sky is", max_tokens=5, temperature=0.0)
    assert done.get_response()["id"] == "mine"
    assert done.as_numpy("num_output_tokens").tolist() == [5, 5]
    texts = done.as_numpy("text_output")
    assert texts.shape == (2,)
    assert all(texts)


def refused(call: Callable[[], object]) -> InferenceServerException:
    """The error of a call that must be refused."""
    try:
        call()
    except InferenceServerException as raised:
        return raised
    raise AssertionError("it was not refused")


def check_refusals_are_its_exceptions(url: str, key: str) -> None:
    for call, status, part in (
        (lambda: infer(url, key, "Hi", model="other"), "404", "not served"),
        (lambda: infer(url, "wrong", "Hi"), "401", "API key"),
        (lambda: infer(url, key, "Hi", max_token=5), "400", "parameters.max_token"),
    ):
        error = refused(call)
        assert status in (error.status() or ""), error.status()
        assert part in error.message(), error.message()


def check_grpc_answers_a_batch(url: str, key: str, tight_url: str, grpc: str) -> None:
    api = tritonclient.grpc.InferenceServerClient(grpc)
    assert api.is_server_ready()
    assert api.is_model_ready("tiny", headers=headers(key))
    assert api.get_model_metadata("tiny", headers=headers(key)).versions == ["1"]
    tensor = tritonclient.grpc.InferInput("text_input", [2], "BYTES")
    tensor.set_data_from_numpy(np.array(["Hello", "The sky is"], dtype=object))
    outputs = [tritonclient.grpc.InferRequestedOutput(name) for name in ("text_output", "num_output_tokens")]
    done = api.infer("tiny", [tensor], outputs=outputs, parameters={"max_tokens": 5}, headers=headers(key))
    assert done.as_numpy("num_output_tokens").tolist() == [5, 5]
    assert done.as_numpy("text_output").shape == (2,)
    error = refused(lambda: api.infer("other", [tensor], headers=headers(key)))
    assert "NOT_FOUND" in (error.status() or ""), error.status()
