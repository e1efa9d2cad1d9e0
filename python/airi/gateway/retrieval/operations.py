"""Routes of collections, as the OpenAPI document shows them."""

from __future__ import annotations

from airi.gateway.operation import Operation
from airi.gateway.retrieval import schemas

__all__ = ["RETRIEVAL_OPERATIONS"]

_CALL = (400, 403, 404, 409, 413, 429, 500, 503, 504)
_READ = (403, 404)

RETRIEVAL_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        path="/v1/retrieve",
        method="post",
        name="retrieve",
        summary="Rows of a collection for a query, and the prompt that is made of them where one is asked for.",
        request=schemas.RetrieveRequest,
        response=schemas.RetrieveResponse,
        errors=_CALL,
    ),
    Operation(
        path="/v1/collections",
        method="get",
        name="listCollections",
        summary="The collections that the caller may search.",
        response=schemas.CollectionList,
        errors=(403,),
    ),
    Operation(
        path="/v1/collections/{name}",
        method="get",
        name="getCollection",
        summary="A collection as it is now.",
        response=schemas.CollectionOf,
        errors=_READ,
    ),
    Operation(
        path="/v1/collections/{name}/sources",
        method="get",
        name="listSources",
        summary="What rows of a collection came from.",
        response=schemas.SourceList,
        errors=_READ,
    ),
    Operation(
        path="/v1/collections/{name}/rows",
        method="get",
        name="listRows",
        summary="Ids and metadata of the rows of a source.",
        response=schemas.RowList,
        query=("source",),
        errors=(400, *_READ),
    ),
    Operation(
        path="/v1/collections/{name}/rows",
        method="post",
        name="writeRows",
        summary="Embed rows and write them, each in place of the one with its id, and remove others: all, or nothing.",
        request=schemas.WriteRequest,
        response=schemas.WriteResponse,
        errors=_CALL,
    ),
)
