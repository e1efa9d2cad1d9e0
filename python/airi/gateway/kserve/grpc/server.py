"""The service: messages become requests of the HTTP routes, and answers become messages or statuses.

So a call over gRPC has the keys, decisions, limits, content rules, metrics and log lines of every other call. Tensors
come as `contents` or raw, and go as they came. Metadata of a call are its headers. Needs the extra `grpc`.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import msgspec

from airi.errors import ConfigError
from airi.gateway.kserve.grpc.calls import Answered, ask
from airi.gateway.kserve.grpc.messages import METHODS, SERVICE, message
from airi.gateway.middleware import ASGIApp

__all__ = ["GrpcServer"]

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_NOT_HEADERS = ("content-type", "content-length", "host", "te", "user-agent")
_NOT_METADATA = (b"content-type", b"content-length", b"connection", b"date", b"server")
_INTEGERS = {"INT32": ("int_contents", "<i")}


class GrpcServer:
    """Listens from the start, so that a taken port is known early, and answers once it has an application.

    *Thread safety*: none; one event loop.
    """

    def __init__(
        self, host: str, port: int, *, body_limit: int, tls: tuple[Path, Path] | None = None
    ) -> None:
        """Raises ConfigError for a port that is taken or a certificate that cannot be read."""
        self._app: ASGIApp | None = None
        self._is_secure = tls is not None
        options = [("grpc.max_receive_message_length", body_limit), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(options=options)
        handlers = {name: self._handler(name) for name in METHODS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                cert, key = (path.read_bytes() for path in tls)
                credentials = grpc.ssl_server_credentials([(key, cert)])
                self.port = self._server.add_secure_port(address, credentials)
        except (RuntimeError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"cannot listen on {host} grpc_port {port}: {reason}", field="grpc_port"
            ) from None

    async def serve(self, app: ASGIApp) -> None:
        """From now on calls are answered."""
        self._app = app
        await self._server.start()

    async def close(self, grace_s: float | None = None) -> None:
        """Takes no more calls, and ends those that run after `grace_s`."""
        await self._server.stop(grace_s)

    def _handler(self, name: str) -> Any:
        answer: Callable[..., Awaitable[Any]] = getattr(self, f"_{name}")
        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=message(f"{name}Request").FromString,
            response_serializer=message(f"{name}Response").SerializeToString,
        )

    async def _ask(self, context: Any, method: str, path: str, body: Any = None) -> Any:
        """What a route answers, as JSON; ends the call with a status where that is no success."""
        headers = [
            (key.encode(), value.encode() if isinstance(value, str) else value)
            for key, value in context.invocation_metadata() or ()
            if key not in _NOT_HEADERS and not key.startswith(("grpc-", ":"))
        ]
        data = b"" if body is None else msgspec.json.encode(body)
        if self._app is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is starting")
            raise AssertionError
        answered = await ask(
            self._app,
            method,
            path,
            [*headers, (b"content-type", b"application/json")],
            data,
            client=context.peer(),
            is_secure=self._is_secure,
        )
        context.set_trailing_metadata(_metadata(answered))
        if answered.status != 200:
            said = msgspec.json.decode(answered.body)
            await context.abort(_CODES.get(answered.status, grpc.StatusCode.INTERNAL), str(said["error"]))
        return msgspec.json.decode(answered.body)

    # -- the service's methods, by their names ----------------------------------------------------

    async def _ServerLive(self, request: Any, context: Any) -> Any:
        return message("ServerLiveResponse")(**await self._ask(context, "GET", "/v2/health/live"))

    async def _ServerReady(self, request: Any, context: Any) -> Any:
        return message("ServerReadyResponse")(**await self._ask(context, "GET", "/v2/health/ready"))

    async def _ModelReady(self, request: Any, context: Any) -> Any:
        said = await self._ask(context, "GET", f"{_model(request.name, request.version)}/ready")
        return message("ModelReadyResponse")(ready=said["ready"])

    async def _ServerMetadata(self, request: Any, context: Any) -> Any:
        return message("ServerMetadataResponse")(**await self._ask(context, "GET", "/v2"))

    async def _ModelMetadata(self, request: Any, context: Any) -> Any:
        said = await self._ask(context, "GET", _model(request.name, request.version))
        return message("ModelMetadataResponse")(**said)

    async def _ModelInfer(self, request: Any, context: Any) -> Any:
        try:
            body = _body(request)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise AssertionError from None
        path = f"{_model(request.model_name, request.model_version)}/infer"
        said = await self._ask(context, "POST", path, body)
        outputs = said.pop("outputs")
        response = message("ModelInferResponse")(**said)
        for output in outputs:
            data = output.pop("data")
            tensor = response.outputs.add(**output)
            if request.raw_input_contents:
                response.raw_output_contents.append(_raw(tensor.datatype, data))
            elif tensor.datatype in _INTEGERS:
                tensor.contents.int_contents.extend(data)
            else:
                tensor.contents.bytes_contents.extend(text.encode() for text in data)
        return response

    async def _RepositoryIndex(self, request: Any, context: Any) -> Any:
        said = await self._ask(context, "POST", "/v2/repository/index", {"ready": request.ready})
        return message("RepositoryIndexResponse")(models=said)

    async def _RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        await self._change(request, context, "load")
        return message("RepositoryModelLoadResponse")()

    async def _RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        await self._change(request, context, "unload")
        return message("RepositoryModelUnloadResponse")()

    async def _change(self, request: Any, context: Any, verb: str) -> None:
        body = {
            "parameters": dict.fromkeys(request.parameters)
        }  # what they say is of no matter: none are taken
        await self._ask(context, "POST", f"/v2/repository/models/{request.model_name}/{verb}", body)


def _model(name: str, version: str) -> str:
    return f"/v2/models/{name}/versions/{version}" if version else f"/v2/models/{name}"


def _body(request: Any) -> dict[str, Any]:
    """An inference as the HTTP route has it. Raises ValueError for contents that are no texts."""
    raws = list(request.raw_input_contents)
    if raws and len(raws) != len(request.inputs):
        raise ValueError(
            f"raw_input_contents: has {len(raws)} tensors; accepted: {len(request.inputs)}, as inputs"
        )
    inputs = []
    for i, tensor in enumerate(request.inputs):
        data = _unpacked(raws[i], i) if raws else list(tensor.contents.bytes_contents)
        try:
            texts = [text.decode() for text in data]
        except UnicodeDecodeError:
            raise ValueError(f"inputs[{i}]: is not UTF-8; accepted: texts in UTF-8") from None
        inputs.append(
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "data": texts,
            }
        )
    return {
        "id": request.id or None,
        "parameters": _parameters(request.parameters),
        "inputs": inputs,
        "outputs": [{"name": output.name} for output in request.outputs],
    }


def _parameters(given: Any) -> dict[str, Any]:
    return {
        name: getattr(value, kind)
        for name, value in given.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }


def _unpacked(raw: bytes, index: int) -> list[bytes]:
    """The texts of a tensor of BYTES: each behind its length in four bytes, little-endian."""
    texts, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            raise ValueError(f"raw_input_contents[{index}]: ends within a text")
        texts.append(raw[at + 4 : end])
        at = end
    return texts


def _raw(datatype: str, data: Iterable[Any]) -> bytes:
    if datatype in _INTEGERS:
        return b"".join(struct.pack(_INTEGERS[datatype][1], value) for value in data)
    texts = [text.encode() for text in data]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _metadata(answered: Answered) -> tuple[tuple[str, str], ...]:
    """What the response's headers say of the call, of limits and of releases."""
    return tuple(
        (key.decode(), value.decode("latin-1")) for key, value in answered.headers if key not in _NOT_METADATA
    )
