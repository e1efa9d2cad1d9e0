"""`/v2`, as clients of the Open Inference Protocol ask."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from airi import __version__
from airi.errors import EngineDeadError
from airi.gateway.choice import Choice, Piece
from airi.gateway.gate import Government
from airi.gateway.generation import Generation
from airi.gateway.governing import decider_of
from airi.text import Tokenizer

from .conftest import ANSWER, Gateway, StartGateway, wait_until
from .content import BLOCK_CARDS, CARD, REDACT_MAIL, ruled

PROMPT = "What is it for?"


def tensor(*texts: str, **changes: Any) -> dict[str, Any]:
    return {"name": "text_input", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts), **changes}


def infer(gateway: Gateway, model: str = "tiny", **body: Any) -> httpx.Response:
    return gateway.http.post(f"/v2/models/{model}/infer", json={"inputs": [tensor(PROMPT)], **body})


def generate(gateway: Gateway, *, model: str = "tiny", stream: bool = False, **body: Any) -> httpx.Response:
    path = "generate_stream" if stream else "generate"
    return gateway.http.post(f"/v2/models/{model}/{path}", json={"text_input": PROMPT, **body})


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def refused(response: httpx.Response, status: int = 400) -> str:
    """The message of a refusal, checked for its form."""
    assert response.status_code == status, response.text
    body = response.json()
    message: str = body["error"]
    assert body == {"error": message}
    assert message
    assert "\n" not in message
    return message


def test_an_inference_continues_every_prompt_of_its_batch(gateway: Gateway, tokenizer: Tokenizer) -> None:
    count = len(tokenizer.encode(ANSWER, add_special_tokens=False))
    outputs = ["text_output", "finish_reason", "num_input_tokens", "num_output_tokens"]
    body = infer(
        gateway,
        id="mine",
        inputs=[tensor("a", PROMPT)],
        outputs=[{"name": name} for name in outputs],
        parameters={"max_tokens": count, "temperature": 0.0},
    ).json()
    assert {key: body[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": "tiny",
        "model_version": "1",
        "id": "mine",
    }
    assert [(out["name"], out["datatype"], out["shape"]) for out in body["outputs"]] == [
        ("text_output", "BYTES", [2]),
        ("finish_reason", "BYTES", [2]),
        ("num_input_tokens", "INT32", [2]),
        ("num_output_tokens", "INT32", [2]),
    ]
    assert [out["data"] for out in body["outputs"]] == [
        [ANSWER, ANSWER],
        ["length", "length"],
        [len(tokenizer.encode("a")), len(tokenizer.encode(PROMPT))],
        [count, count],
    ]


@pytest.mark.parametrize("shape", [[2], [2, 1]])
@pytest.mark.parametrize("data", [["a", "b"], [["a"], ["b"]]])
def test_without_outputs_the_text_comes(gateway: Gateway, shape: list[int], data: list[Any]) -> None:
    inputs = [tensor(shape=shape, data=data)]
    body = infer(gateway, inputs=inputs, parameters={"max_tokens": 2}).json()
    assert "id" not in body
    (output,) = body["outputs"]
    assert (output["name"], output["shape"], len(output["data"])) == ("text_output", [2], 2)


def test_a_text_is_generated_whole_or_in_pieces(gateway: Gateway, tokenizer: Tokenizer) -> None:
    count = len(tokenizer.encode(ANSWER, add_special_tokens=False))
    details = {
        "finish_reason": "length",
        "prompt_tokens": len(tokenizer.encode(PROMPT)),
        "completion_tokens": count,
    }
    whole = generate(gateway, id="g", parameters={"max_tokens": count}).json()
    name = {"model_name": "tiny", "model_version": "1", "id": "g"}
    assert whole == {**name, "text_output": ANSWER, "details": details}
    told = events(generate(gateway, stream=True, id="g", max_tokens=count))
    assert len(told) > 5
    assert "".join(event["text_output"] for event in told) == ANSWER
    assert told[-1] == {**name, "text_output": "", "details": details}
    assert all("details" not in event for event in told[:-1])


def test_parameters_may_stand_beside_the_text(gateway: Gateway) -> None:
    beside = generate(gateway, max_tokens=50, stop=["there"]).json()
    assert beside["text_output"] == "Hello "
    assert beside["details"]["finish_reason"] == "stop"
    both = generate(gateway, max_tokens=1, parameters={"max_tokens": 2}).json()
    assert both["details"]["completion_tokens"] == 2


def test_models_have_slashes_and_aliases(start_gateway: StartGateway) -> None:
    gateway = start_gateway(name="org/model/infer", aliases=("short",))
    assert infer(gateway, "org/model/infer", parameters={"max_tokens": 1}).status_code == 200
    assert gateway.http.get("/v2/models/org/model/infer").json()["name"] == "org/model/infer"
    assert generate(gateway, model="short", max_tokens=1).json()["model_name"] == "short"


def test_the_server_says_what_it_is_and_serves(gateway: Gateway) -> None:
    server = gateway.http.get("/v2").json()
    assert server == {
        "name": "airi",
        "version": __version__,
        "extensions": ["generate", "model_repository"],
    }
    assert gateway.http.get("/v2/health/live").json() == {"live": True}
    assert gateway.http.get("/v2/health/ready").json() == {"ready": True}
    assert gateway.http.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    model = gateway.http.get("/v2/models/tiny-alias").json()
    assert (model["name"], model["versions"], model["platform"]) == ("tiny-alias", ["1"], "airi")
    assert model["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}]
    assert {"name": "num_output_tokens", "datatype": "INT32", "shape": [-1]} in model["outputs"]
    index = gateway.http.post("/v2/repository/index", json={"ready": True}).json()
    assert index == [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
    assert gateway.http.post("/v2/repository/index").json() == index


def test_an_engine_that_has_gone_is_not_ready(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    gateway.stub.stop()
    wait_until(
        lambda: gateway.http.get("/v2/health/ready").status_code == 503, "it is ready without an engine"
    )
    assert "does not serve" in refused(gateway.http.get("/v2/models/tiny/ready"), 503)
    assert gateway.http.get("/v2/health/live").status_code == 200
    (entry,) = gateway.http.post("/v2/repository/index").json()
    assert (entry["state"], "does not serve" in entry["reason"]) == ("UNAVAILABLE", True)
    assert gateway.http.post("/v2/repository/index", json={"ready": True}).json() == []


def test_who_may_not_use_a_model_is_not_told_of_it(start_gateway: StartGateway) -> None:
    rules = 'permit (principal, action == Action::"list_models", resource);'

    async def govern() -> Government:
        return Government(decider_of(rules, ("tiny",)))

    gateway = start_gateway(govern=govern)
    assert gateway.http.post("/v2/repository/index").json() == []
    for path in ("/v2/models/tiny", "/v2/models/tiny/ready"):
        assert "is not served here; served: nothing" in refused(gateway.http.get(path), 404)
    assert "denied" in refused(infer(gateway), 403)


def test_content_rules_hold(start_gateway: StartGateway) -> None:
    govern = ruled(input=[BLOCK_CARDS], output=[REDACT_MAIL])
    gateway = start_gateway(answer="Write to me@example.org now.", govern=govern)
    assert "inputs[0].data[1]" in refused(infer(gateway, inputs=[tensor("a", f"Card {CARD}")]))
    assert refused(generate(gateway, text_input=f"Card {CARD}")).startswith("text_input")
    told = events(generate(gateway, stream=True, max_tokens=40))
    assert "".join(event["text_output"] for event in told).startswith("Write to <mail> now.")
    assert told[-1]["details"]["content_filter_results"]["mail"]["matches"] == {"email": 1}
    body = infer(gateway, outputs=[{"name": "details"}], parameters={"max_tokens": 40}).json()
    details = json.loads(body["outputs"][0]["data"][0])
    assert details["content_filter_results"]["mail"]["filtered"] is True


def test_a_stream_that_fails_says_so(start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Generation.take

    async def taken(self: Generation, *, per_token: bool) -> dict[Choice, list[Piece]]:
        if self.choices[0].completion_tokens:
            raise EngineDeadError("the engine has gone")
        return await take(self, per_token=per_token)

    monkeypatch.setattr(Generation, "take", taken)
    gateway = start_gateway(step_us=5000)
    told = events(generate(gateway, stream=True, max_tokens=40))
    assert told.pop() == {"error": "the engine has gone"}
    assert "".join(event["text_output"] for event in told)[:1] == ANSWER[:1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": []}, "inputs: "),
        ({"inputs": [tensor("a"), tensor("b")]}, "inputs: has text_input 2 times; accepted: once"),
        (
            {"inputs": [{**tensor("a"), "name": "x"}]},
            "inputs[0].name: 'x' is not taken; accepted: text_input",
        ),
        (
            {"inputs": [tensor("a", datatype="FP32")]},
            "inputs[0].datatype: 'FP32' is not taken; accepted: BYTES",
        ),
        ({"inputs": [tensor("a", shape=[2])]}, "inputs[0].data: has 1 texts; accepted: 2, as its shape says"),
        (
            {"inputs": [tensor("a", shape=[1, 2])]},
            "inputs[0].shape: [1, 2] is not taken; accepted: [n] or [n, 1]",
        ),
        ({"inputs": [tensor(shape=[0], data=[])]}, "inputs[0].shape: [0] is not taken"),
        ({"inputs": [tensor(shape=[1], data=[5])]}, "inputs[0].data[0]: is no text"),
        (
            {"outputs": [{"name": "logits"}]},
            "outputs[0].name: 'logits' is not given; accepted: text_output, ",
        ),
        (
            {"parameters": {"max_token": 3}},
            "parameters.max_token: is an unknown parameter; accepted: max_tokens",
        ),
        ({"parameters": {"n": 2}}, "parameters.n: is an unknown parameter"),
        ({"parameters": {"max_tokens": 0}}, "parameters.max_tokens: "),
        ({"parameters": {"temperature": "hot"}}, "parameters.temperature: "),
        ({"parameters": {"min_tokens": 9, "max_tokens": 3}}, "parameters.min_tokens"),
        ({"inputs": [tensor("is it " * 999)]}, "inputs[0].data"),
    ],
)
def test_what_cannot_be_served_is_said_by_its_place(
    gateway: Gateway, body: dict[str, Any], message: str
) -> None:
    assert refused(infer(gateway, **body)).startswith(message)


def test_other_refusals_have_the_protocols_form(gateway: Gateway) -> None:
    assert "not valid JSON" in refused(gateway.http.post("/v2/models/tiny/infer", content=b"{"))
    assert "served: tiny, tiny-alias" in refused(infer(gateway, "other"), 404)
    assert refused(generate(gateway, text_input=5)).startswith("text_input: ")
    assert refused(generate(gateway, best_of=2)).startswith("best_of: is an unknown parameter")
    assert refused(generate(gateway, parameters={"top_p": 2})).startswith("parameters.top_p: ")
    assert "no such route" in refused(gateway.http.get("/v2/nothing"), 404)
    assert "ready" in refused(gateway.http.post("/v2/repository/index", json={"ready": 3}))
    headers = {"inference-header-content-length": "10"}
    binary = gateway.http.post("/v2/models/tiny/infer", content=b"{}", headers=headers)
    assert "binary tensors are not taken" in refused(binary)


def test_a_model_without_versions_has_one(gateway: Gateway) -> None:
    inputs = {"inputs": [tensor(PROMPT)], "parameters": {"max_tokens": 1}}
    path = "/v2/models/tiny/versions/1"
    assert gateway.http.post(f"{path}/infer", json=inputs).json()["model_version"] == "1"
    assert (
        gateway.http.post(f"{path}/generate", json={"text_input": "Hi", "max_tokens": 1}).status_code == 200
    )
    assert gateway.http.get(path).json()["versions"] == ["1"]
    assert gateway.http.get(f"{path}/ready").json()["ready"] is True
    message = "version: '2' of tiny is not served here; served: 1"
    assert refused(gateway.http.post("/v2/models/tiny/versions/2/infer", json=inputs), 404) == message
    for page in ("", "/ready"):
        assert refused(gateway.http.get(f"/v2/models/tiny/versions/2{page}"), 404) == message
    assert "served: tiny" in refused(gateway.http.post("/v2/models/x/versions/1/infer", json=inputs), 404)
    change = gateway.http.post("/v2/repository/models/tiny@1/load", json={})
    assert refused(change, 409) == "no model here has several versions"
    change = gateway.http.post("/v2/repository/models/tiny/unload", json={})
    assert refused(change).startswith("model: 'tiny' names no version; accepted: MODEL@VERSION")
    change = gateway.http.post("/v2/repository/models/tiny@1/load", json={"parameters": {"x": 1}})
    assert refused(change) == "parameters: none are taken"
