"""Every call as a request, for both clients.

Bodies follow ``docs/reference/api.md``. Vectors travel as base64 of little-endian float32: half the bytes of a JSON
array and exactly what the server stores.
"""

from __future__ import annotations

import array
import base64
import datetime as dt
import json
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final
from urllib.parse import quote


class _Unset(Enum):
    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = _Unset.UNSET
"""Leave this field as it is (``update``), as ``None`` clears it."""

Unset = _Unset
Json = dict[str, Any]
NODES = "/v1/memory/nodes"
MAX_FILTER = 4096  # characters of a filter in a URL; a longer one goes in a body
ARTIFACTS = "/v1/memory/artifacts"
AUDIT = "/v1/audit"
JOBS = "/v1/memory/vectors/jobs"


@dataclass(frozen=True, slots=True)
class Call:
    """A request, ready to send.

    ``accepted``: statuses besides 2xx that are answers, not errors. ``follow``: whether redirects are followed.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = True
    accepted: frozenset[int] = frozenset()
    follow: bool = True


def create(
    content: str | None,
    *,
    owner: str,
    namespace: str | None,
    metadata: Mapping[str, Any] | None,
    embedding: object,
    embedding_model: str | None,
    embedding_id: str | None,
    ttl_seconds: int | None,
    pii_flags: Mapping[str, Any] | None,
    legal_hold: bool | None,
    subjects: Iterable[str] | None,
    occurred_at: dt.datetime | str | None,
    thread: str | None,
    position: int | None,
    artifacts: Iterable[Mapping[str, Any]] | None,
    wait_indexed: bool,
    idempotency_key: str | None,
) -> Call:
    body = {
        "owner": owner,
        "content": content,
        "namespace": namespace,
        "embeddingId": embedding_id,
        "embedding": None if embedding is None else encode_embedding(embedding, embedding_model),
        "ttlSeconds": ttl_seconds,
        "piiFlags": pii_flags,
        "legalHold": legal_hold,
        "subjects": None if subjects is None else _strings(subjects, "subjects"),
        "occurredAt": _moment(occurred_at),
        "thread": thread,
        "position": position,
        "artifacts": None if artifacts is None else [_node_artifact(given) for given in artifacts],
    }
    given = {"metadata": dict(metadata or {})} | {k: v for k, v in body.items() if v is not None}
    return _write("POST", NODES, given, idempotency_key, params={"wait": "indexed"} if wait_indexed else {})


def put(
    embedding_id: str,
    body: Mapping[str, Any],
    *,
    if_match: int | str | None,
    wait_indexed: bool,
    idempotency_key: str | None,
) -> Call:
    given = {"metadata": {}} | {name: value for name, value in body.items() if value is not None}
    if given.get("embedding") is not None:
        given["embedding"] = encode_embedding(given["embedding"], None)
    if "subjects" in given:
        given["subjects"] = _strings(given["subjects"], "subjects")
    if "occurredAt" in given:
        given["occurredAt"] = _moment(given["occurredAt"])
    params = {"wait": "indexed"} if wait_indexed else {}
    path = f"{NODES}/by-external/{quote(embedding_id, safe='')}"
    return _write("PUT", path, given, idempotency_key, params=params, headers=_if_match(if_match))


def create_many(nodes: Iterable[Mapping[str, Any]], idempotency_key: str | None) -> Call:
    """``nodes`` as the API takes them; an ``embedding`` with its model, in any form that ``create`` takes."""
    bodies = []
    for node in nodes:
        given = {"metadata": {}} | dict(node)
        if given.get("embedding") is not None:
            given["embedding"] = encode_embedding(given["embedding"], None)
        bodies.append(given)
    return _write("POST", f"{NODES}:batch", bodies, idempotency_key)


def get(node_id: str) -> Call:
    return Call("GET", _node(node_id))


def update(
    node_id: str,
    changes: Mapping[str, object],
    *,
    if_match: int | str | None,
    wait_indexed: bool,
    idempotency_key: str | None,
) -> Call:
    given: Json = {name: value for name, value in changes.items() if value is not UNSET}
    if given.get("subjects") is not None:
        given["subjects"] = _strings(given["subjects"], "subjects")
    if "occurredAt" in given:
        given["occurredAt"] = _moment(given["occurredAt"])
    if not given:
        raise ValueError("nothing to update: name at least one field, such as content= or metadata=")
    params = {"wait": "indexed"} if wait_indexed else {}
    return _write("PATCH", _node(node_id), given, idempotency_key, params=params, headers=_if_match(if_match))


def delete(node_id: str, *, if_match: int | str | None, idempotency_key: str | None) -> Call:
    return _write("DELETE", _node(node_id), None, idempotency_key, headers=_if_match(if_match))


def list_page(where: Mapping[str, Any] | None, cursor: str | None, limit: int) -> Call:
    given = encode(where).decode() if where else ""
    if len(given) > MAX_FILTER:
        about: Json = {"filter": where, "limit": limit} | ({"cursor": cursor} if cursor else {})
        return Call("POST", f"{NODES}:list", headers=_JSON, body=encode(about))
    params = {"limit": str(limit)}
    if where:
        params["filter"] = given
    if cursor:
        params["cursor"] = cursor
    return Call("GET", NODES, params=params)


def history(node_id: str, cursor: str | None) -> Call:
    params = {"limit": "100"} | ({"cursor": cursor} if cursor else {})
    return Call("GET", f"{_node(node_id)}/history", params=params)


def legal_hold(node_id: str, held: bool, reason: str, case_id: str | None, idempotency_key: str | None) -> Call:
    body: Json = {"legalHold": held, "reason": reason}
    if case_id is not None:
        body["caseId"] = case_id
    return _write("POST", f"{_node(node_id)}/legal-hold", body, idempotency_key)


def search(
    query: str | None,
    *,
    query_embedding: object,
    top_k: int,
    where: Mapping[str, Any] | None,
    namespace: str | None,
    score_threshold: float | None,
    mode: str | None,
    before: int,
    after: int,
    explain: bool,
    recency: Mapping[str, float] | None,
) -> Call:
    if query is None and query_embedding is None:
        raise ValueError("search needs query= (text) or query_embedding= (a vector)")
    body = {
        "query": query,
        "queryEmbedding": None if query_embedding is None else encode_vector(query_embedding),
        "topK": top_k,
        "filter": where,
        "namespace": namespace,
        "scoreThreshold": score_threshold,
        "mode": mode,
        "context": {"before": before, "after": after} if before or after else None,
        "explain": explain or None,
        "recency": recency,
    }
    given = {k: v for k, v in body.items() if v is not None}
    return Call("POST", "/v1/memory/search", headers=_JSON, body=encode(given))


def _node_artifact(given: Mapping[str, Any]) -> Json:
    return {name: _moment(value) if name == "retainUntil" else value for name, value in given.items()}


def upload(
    *,
    node: str | None,
    name: str | None,
    content_type: str,
    sha256: str | None,
    manifest_signature_id: str | None,
    retain_until: dt.datetime | str | None,
    idempotency_key: str | None,
) -> Call:
    headers = {"Content-Type": content_type, "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    if sha256 is not None:
        headers["X-Content-SHA256"] = sha256
    if manifest_signature_id is not None:
        headers["X-Manifest-Signature-Id"] = manifest_signature_id
    if retain_until is not None:
        headers["X-Retain-Until"] = str(_moment(retain_until))
    params = {"memoryNodeId": node, "name": name}
    return Call("PUT", ARTIFACTS, params={k: v for k, v in params.items() if v is not None}, headers=headers)


def register(
    url: str,
    *,
    sha256: str,
    size: int,
    node: str | None,
    name: str | None,
    content_type: str | None,
    manifest_signature_id: str | None,
    retain_until: dt.datetime | str | None,
    metadata: Mapping[str, Any] | None,
    idempotency_key: str | None,
) -> Call:
    body = {
        "url": url,
        "sha256": sha256,
        "sizeBytes": size,
        "node": node,
        "name": name,
        "contentType": content_type,
        "manifestSignatureId": manifest_signature_id,
        "retainUntil": _moment(retain_until),
        "metadata": None if metadata is None else dict(metadata),
    }
    return _write("POST", ARTIFACTS, {k: v for k, v in body.items() if v is not None}, idempotency_key)


def retain(artifact_id: str, until: dt.datetime | str, idempotency_key: str | None) -> Call:
    path = f"{ARTIFACTS}/{quote(str(artifact_id), safe='')}/retention"
    return _write("POST", path, {"retainUntil": _moment(until)}, idempotency_key)


def job(job_id: str) -> Call:
    return Call("GET", f"{JOBS}/{quote(str(job_id), safe='')}")


def job_change(job_id: str, change: str, idempotency_key: str | None) -> Call:
    return _write("POST", f"{JOBS}/{quote(str(job_id), safe='')}/{change}", None, idempotency_key)


def artifacts_page(node: str | None, cursor: str | None, limit: int) -> Call:
    params = {"limit": str(limit), "memoryNodeId": node, "cursor": cursor}
    return Call("GET", ARTIFACTS, params={name: value for name, value in params.items() if value is not None})


def delete_artifact(artifact_id: str, idempotency_key: str | None) -> Call:
    return _write("DELETE", f"{ARTIFACTS}/{quote(str(artifact_id), safe='')}", None, idempotency_key)


def artifact(artifact_id: str) -> Call:
    return Call("GET", f"{ARTIFACTS}/{quote(str(artifact_id), safe='')}")


def artifact_content(artifact_id: str) -> Call:
    # Compressed transfer would make the hash depend on the client's decoder.
    return Call(
        "GET", f"{ARTIFACTS}/{quote(str(artifact_id), safe='')}/content", headers={"Accept-Encoding": "identity"}
    )


def artifact_link(artifact_id: str) -> Call:
    # A store without links answers with the bytes: ask for one at most (an empty file has none: 416).
    return Call(
        "GET",
        f"{ARTIFACTS}/{quote(str(artifact_id), safe='')}/content",
        params={"link": "true"},
        headers={"Range": "bytes=0-0"},
        accepted=frozenset({302, 416}),
        follow=False,
    )


def events_page(
    *,
    type: str | None,
    node: str | None,
    artifact: str | None,
    since: dt.datetime | str | None,
    until: dt.datetime | str | None,
    cursor: str | None,
    limit: int,
) -> Call:
    params = {"type": type, "memoryNodeId": node, "artifactId": artifact, "since": _moment(since),
              "until": _moment(until), "cursor": cursor, "limit": str(limit)}  # fmt: skip
    return Call("GET", f"{AUDIT}/events", params={k: v for k, v in params.items() if v is not None})


def event(event_id: str) -> Call:
    return Call("GET", f"{AUDIT}/events/{quote(str(event_id), safe='')}")


def proof(event_id: str) -> Call:
    return Call("GET", f"{AUDIT}/events/{quote(str(event_id), safe='')}/proof")


def checkpoint() -> Call:
    return Call("GET", f"{AUDIT}/checkpoint")


def health() -> Call:
    # 503 is this call's way of saying "unhealthy", with the same body.
    return Call("GET", "/healthz", accepted=frozenset({503}))


def encode(value: object) -> bytes:
    """JSON bytes. ValueError for NaN, infinity and lone surrogates, which the server would refuse."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def encode_embedding(embedding: object, model: str | None) -> Json:
    """``{model, dimension, vector}`` from such a dict, its vector in any form, or from a bare vector plus its model."""
    if isinstance(embedding, Mapping):
        given = dict(embedding)
        vector = given.pop("vector", None)
        if vector is None:
            raise ValueError("embedding needs a 'vector'")
        given["vector"] = encode_vector(vector)
        given.setdefault("dimension", len(base64.b64decode(given["vector"])) // 4)
        if model is not None:
            given["model"] = model
    else:
        vector = encode_vector(embedding)
        given = {"model": model, "dimension": len(base64.b64decode(vector)) // 4, "vector": vector}
    if not given.get("model"):
        raise ValueError(
            "which model made this embedding? Give {'model': ..., 'vector': ...} or embedding_model=..., as vectors of "
            "different models cannot be compared"
        )
    return given


def encode_vector(vector: object) -> str:
    """base64 of little-endian float32, from a string of that, from raw float32 bytes or from numbers."""
    if isinstance(vector, str):
        return vector
    if isinstance(vector, (bytes, bytearray)):
        return base64.b64encode(vector).decode("ascii")
    if isinstance(vector, Iterable):
        tolist = getattr(vector, "tolist", None)  # NumPy arrays and tensors: much faster than iterating
        try:
            floats = array.array("f", tolist() if callable(tolist) else vector)
        except TypeError as error:
            raise TypeError(f"a vector is a flat sequence of numbers ({error})") from None
        if sys.byteorder == "big":
            floats.byteswap()
        return base64.b64encode(floats.tobytes()).decode("ascii")
    raise TypeError(f"a vector is a flat sequence of numbers, not {type(vector).__name__}")


_JSON = {"Content-Type": "application/json"}


def _write(
    method: str,
    path: str,
    body: Json | list[Json] | None,
    idempotency_key: str | None,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Call:
    # A key on every write, made here unless the caller has one, is what makes repeats after a broken connection safe.
    sent = {"Idempotency-Key": idempotency_key or str(uuid.uuid4()), **(headers or {})}
    if body is not None:
        sent |= _JSON
    return Call(method, path, params=params or {}, headers=sent, body=None if body is None else encode(body))


def _node(node_id: str) -> str:
    return f"{NODES}/{quote(str(node_id), safe='')}"


def _if_match(version: int | str | None) -> dict[str, str]:
    if version is None:
        return {}
    return {"If-Match": f'"{version}"' if isinstance(version, int) or version.isdigit() else version}


def _strings(values: Iterable[str], name: str) -> list[str]:
    if isinstance(values, str):
        raise TypeError(f"{name} is a list of strings, not one string")
    return list(values)


def _moment(moment: dt.datetime | str | None) -> str | None:
    """RFC 3339; a naive datetime is local time, as everywhere in the standard library."""
    if isinstance(moment, dt.datetime):
        return moment.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    return moment
