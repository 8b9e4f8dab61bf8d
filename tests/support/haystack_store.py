"""A Haystack document store over the HTTP API, thin: so that Haystack's own tests can be run against the Memory Layer.

A document is a node: its id the ``embeddingId``, its meta under ``metadata.meta``. Two of Haystack's ideas are translated here,
because the API's filter language has them otherwise:

- a range over an ISO date in meta. The language orders no strings; a date is written a second time, as seconds since 1970
  under ``metadata.instants``, and a range whose operand is a date goes there.
- ``>`` and its kin with None match nothing; in the language a range needs a number.

An embedding goes to the index and is searched by; the API does not give it back, so a document that is read has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
from haystack import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError

PLAIN = {"==": "$eq", "!=": "$ne", "in": "$in", "not in": "$nin"}
RANGES = {">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte"}
NOTHING: dict[str, Any] = {"embeddingId": {"$in": []}}


class MemoryLayerDocumentStore:
    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def count_documents(self) -> int:
        return self.count_documents_by_filter({})

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        return len(list(self._nodes(filters)))

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The newest first; of one batch in no particular order."""
        return [_document(node) for node in self._nodes(filters)]

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Without a policy a document that is there already is an error, as with FAIL."""
        if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
            raise ValueError("write_documents takes a list of documents")
        if policy == DuplicatePolicy.OVERWRITE:
            self.delete_documents([document.id for document in documents])
        written = 0
        for start in range(0, len(documents), 100):
            answer = _done(
                self._http.post("/v1/memory/nodes:batch", json=[_node(d) for d in documents[start : start + 100]])
            )
            for item in answer.json()["items"]:
                error = item.get("error")
                if error is None:
                    written += 1
                elif error["code"] != "CONFLICT":
                    raise AssertionError(error)
                elif policy != DuplicatePolicy.SKIP:
                    raise DuplicateDocumentError(error["message"])
        return written

    def delete_documents(self, document_ids: list[str]) -> None:
        for node in self._found({"embeddingId": {"$in": document_ids}}):
            _done(self._http.delete(f"/v1/memory/nodes/{node['memoryNodeId']}"))

    def delete_all_documents(self) -> None:
        self.delete_by_filter({})

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        nodes = list(self._nodes(filters))
        for node in nodes:
            _done(self._http.delete(f"/v1/memory/nodes/{node['memoryNodeId']}"))
        return len(nodes)

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        nodes = list(self._nodes(filters))
        for node in nodes:
            body = {"metadata": {"meta": meta, "instants": _instants(meta)}}  # merged with what is there
            _done(
                self._http.patch(
                    f"/v1/memory/nodes/{node['memoryNodeId']}", json=body, headers={"If-Match": f'"{node["version"]}"'}
                )
            )
        return len(nodes)

    def _nodes(self, filters: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        return self._found(translate(filters) if filters else {})

    def _found(self, where: dict[str, Any]) -> Iterator[dict[str, Any]]:
        params: dict[str, Any] = {"limit": 100} | ({"filter": json.dumps(where)} if where else {})
        while True:
            page = _done(self._http.get("/v1/memory/nodes", params=params)).json()
            yield from page["items"]
            if page["nextCursor"] is None:
                return
            params["cursor"] = page["nextCursor"]


def translate(filters: dict[str, Any]) -> dict[str, Any]:
    """A Haystack filter in the API's language. Raises FilterError."""
    if "field" in filters:
        return _comparison(filters)
    if "operator" not in filters or "conditions" not in filters:
        raise FilterError("a filter needs operator and conditions, or field, operator and value")
    parts = [translate(part) for part in filters["conditions"]]
    match filters["operator"]:
        case "AND":
            return {"$and": parts}
        case "OR":
            return {"$or": parts}
        case "NOT":
            return {"$not": {"$and": parts}}
    raise FilterError(f"there is no operator {filters['operator']}")


def _comparison(condition: dict[str, Any]) -> dict[str, Any]:
    if "operator" not in condition or "value" not in condition:
        raise FilterError("a comparison needs field, operator and value")
    field, operator, value = condition["field"], condition["operator"], condition["value"]
    path = {"id": "embeddingId", "content": "content"}.get(field, f"metadata.meta.{field.removeprefix('meta.')}")
    if operator in RANGES:
        if value is None:
            return NOTHING
        if isinstance(value, str):
            instant = _instant(value)
            if instant is None:
                raise FilterError("strings have no order, unless they are ISO dates")
            path, value = path.replace("metadata.meta.", "metadata.instants.", 1), instant
        if isinstance(value, list):
            raise FilterError("lists have no order")
        return {path: {RANGES[operator]: value}}
    if operator not in PLAIN:
        raise FilterError(f"there is no operator {operator}")
    if operator in ("in", "not in") and not isinstance(value, list):
        raise FilterError(f"{operator} takes a list")
    return {path: {PLAIN[operator]: value}}


def _node(document: Document) -> dict[str, Any]:
    body: dict[str, Any] = {
        "embeddingId": document.id,
        "owner": "haystack",
        "metadata": {"meta": document.meta, "instants": _instants(document.meta)},
    }
    if document.content is not None:
        body["content"] = document.content
    if document.embedding is not None:
        dimension = len(document.embedding)
        body["embedding"] = {"model": f"haystack-{dimension}", "dimension": dimension, "vector": document.embedding}
        body["namespace"] = f"haystack-{dimension}"  # a namespace has one model; text without a vector is the server's
    return body


def _document(node: dict[str, Any]) -> Document:
    return Document(id=node["embeddingId"], content=node["content"], meta=node["metadata"]["meta"])


def _instants(meta: dict[str, Any]) -> dict[str, float]:
    found = {key: _instant(value) for key, value in meta.items() if isinstance(value, str)}
    return {key: instant for key, instant in found.items() if instant is not None}


def _instant(text: str) -> float | None:
    """Seconds since 1970 of an ISO date or time; one without a zone is in UTC, as Haystack's own stores take it."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _done(response: httpx2.Response) -> httpx2.Response:
    if response.status_code == 422:
        raise FilterError(response.json()["error"]["message"])
    assert response.is_success, response.text
    return response
