"""The protocol's messages, as protobuf classes.

https://github.com/kserve/open-inference-protocol, specification/protocol/open_inference_grpc.proto, with Triton's
repository calls. Made from this table at import: generated code would be bound to one version of protobuf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["METHODS", "SERVICE", "message"]

SERVICE = "inference.GRPCInferenceService"
METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)
"""Each takes METHODRequest and gives METHODResponse."""

_NAMED = {"name": (1, "string"), "version": (2, "string")}
_TENSOR = {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "*int64")}
_CALLED = {"model_name": (1, "string"), "model_version": (2, "string"), "id": (3, "string")}
_CHANGED = {
    "repository_name": (1, "string"),
    "model_name": (2, "string"),
    "parameters": (3, "{InferParameter"),
}
_MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    # "*": repeated; "{": a map from texts; "|": one of those that have it.
    "InferParameter": {
        "bool_param": (1, "|bool"),
        "int64_param": (2, "|int64"),
        "string_param": (3, "|string"),
        "double_param": (4, "|double"),
        "uint64_param": (5, "|uint64"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "*bool"),
        "int_contents": (2, "*int32"),
        "int64_contents": (3, "*int64"),
        "uint_contents": (4, "*uint32"),
        "uint64_contents": (5, "*uint64"),
        "fp32_contents": (6, "*float"),
        "fp64_contents": (7, "*double"),
        "bytes_contents": (8, "*bytes"),
    },
    "InferTensor": {**_TENSOR, "parameters": (4, "{InferParameter"), "contents": (5, "InferTensorContents")},
    "InferRequestedOutputTensor": {"name": (1, "string"), "parameters": (2, "{InferParameter")},
    "TensorMetadata": _TENSOR,
    "ModelIndex": {**_NAMED, "state": (3, "string"), "reason": (4, "string")},
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_NAMED, "extensions": (3, "*string")},
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "*string"),
        "platform": (3, "string"),
        "inputs": (4, "*TensorMetadata"),
        "outputs": (5, "*TensorMetadata"),
    },
    "ModelInferRequest": {
        **_CALLED,
        "parameters": (4, "{InferParameter"),
        "inputs": (5, "*InferTensor"),
        "outputs": (6, "*InferRequestedOutputTensor"),
        "raw_input_contents": (7, "*bytes"),
    },
    "ModelInferResponse": {
        **_CALLED,
        "parameters": (4, "{InferParameter"),
        "outputs": (5, "*InferTensor"),
        "raw_output_contents": (6, "*bytes"),
    },
    "RepositoryIndexRequest": {"repository_name": (1, "string"), "ready": (2, "bool")},
    "RepositoryIndexResponse": {"models": (1, "*ModelIndex")},
    "RepositoryModelLoadRequest": _CHANGED,
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": _CHANGED,
    "RepositoryModelUnloadResponse": {},
}


def message(name: str) -> Any:
    """The class of a message."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="airi/inference.proto", package="inference", syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(described, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add_field(described: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    Field = descriptor_pb2.FieldDescriptorProto
    field = described.field.add(name=name, number=number, label=Field.LABEL_OPTIONAL)
    if kind[0] == "|":
        if not described.oneof_decl:
            described.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    elif kind[0] in "*{":
        field.label = Field.LABEL_REPEATED
    base = kind.lstrip("|*{")
    if kind[0] == "{":
        entry = described.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, base)
        field.type, field.type_name = Field.TYPE_MESSAGE, f".inference.{described.name}.{entry.name}"
    elif base in _MESSAGES:
        field.type, field.type_name = Field.TYPE_MESSAGE, f".inference.{base}"
    else:
        field.type = Field.Type.Value(f"TYPE_{base.upper()}")


_POOL = _pool()
