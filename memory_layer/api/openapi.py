"""The OpenAPI 3.1 document, made from the table of operations. ``docs/openapi.json`` is this, committed; a test compares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from memory_layer import __version__, errors
from memory_layer.api import schemas
from memory_layer.api.decode import MAX_ITEMS
from memory_layer.api.operations import OPERATIONS, Operation

_REF = "#/components/schemas/{name}"
_PLACEHOLDER = re.compile(r"{(\w+)(?::\w+)?}")
_TILE = r"^(entries|[0-9]|[1-5][0-9]|6[0-3])/(x[0-9]{3}/){0,5}[0-9]{3}(\.p/[1-9][0-9]{0,2})?$"
_IN_PATH: dict[str, dict[str, Any]] = {
    "id": {"type": "string", "format": "uuid"},
    "embeddingId": {
        "type": "string",
        "minLength": 1,
        "maxLength": 512,
        "description": "the caller's own id, percent-encoded, its slashes too",
    },
    "tenant": {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}$"},
    # Slashes and all: a parameter of OpenAPI cannot say that they stand as they are.
    "path": {"type": "string", "pattern": _TILE, "description": "its slashes are not escaped"},
}
# What the dispatcher itself may answer before or around any handler.
_ALWAYS = (
    errors.ValidationError,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.HeadersTooLarge,
    errors.RequestTimeout,
    errors.DatabaseUnavailable,
    errors.IssuerUnavailable,
    errors.Overloaded,
)
_PUBLIC: dict[str | None, str] = {
    "checkpoint": " With AUDIT_PUBLIC=checkpoint or tiles no token is needed.",
    "tiles": " With AUDIT_PUBLIC=tiles no token is needed, but for entries.",
}
_WITH_BODY = (errors.MalformedJson, errors.PayloadTooLarge, errors.UnsupportedMediaType)


def document() -> dict[str, Any]:
    """The whole document as builtins, in a stable order."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        path = _PLACEHOLDER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation)
    paths |= _health_paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Memory Layer",
            "version": __version__,
            "summary": "Governed memory for AI agents",
            "description": "Store, find and prove. Every write answers with its place in a signed, hash-chained audit log.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": _components(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Needs the scope `{operation.scope}`.{_PUBLIC.get(operation.public, '')}",
        "tags": [operation.path.split("/")[3].partition(":")[0]],
        "parameters": [*_path_parameters(operation), *_query_parameters(operation), *_header_parameters(operation)],
        "responses": _responses(operation),
    }
    if operation.body is not None:
        spec["requestBody"] = {"required": True, "content": _body_content(operation.body, operation.many)}
    elif operation.streams:
        binary = {"type": "string", "format": "binary"}
        spec["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": binary}}}
    return spec


def _body_content(body: type, many: bool) -> dict[str, Any]:
    if not many:
        return {"application/json": {"schema": _ref(body)}}
    array = {"type": "array", "items": _ref(body), "minItems": 1, "maxItems": MAX_ITEMS}
    return {
        "application/json": {"schema": array},
        "application/x-ndjson": {"schema": {"type": "string", "description": "one such object a line"}},
    }


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _IN_PATH[name]}
        for name in _PLACEHOLDER.findall(operation.path)
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    (schema,), components = msgspec.json.schema_components([operation.query], ref_template=_REF)
    shape = components[operation.query.__name__] if "$ref" in schema else schema
    parameters = []
    for name, property_schema in shape.get("properties", {}).items():
        given = {key: value for key, value in property_schema.items() if key != "default" or value is not None}
        if "anyOf" in given:  # an absent parameter is null only on the inside
            options = [option for option in given["anyOf"] if option != {"type": "null"}]
            given = {**{k: v for k, v in given.items() if k != "anyOf"}, **options[0]}
        parameter = {"name": name, "in": "query", "required": False, "schema": given}
        if name == "filter":
            # A filter travels as JSON text, and its language is wider than a schema can say.
            parameter["content"] = {"application/json": {"schema": {"type": "object"}}}
            del parameter["schema"]
        if "description" in given:
            parameter["description"] = given.pop("description")
        parameters.append(parameter)
    return parameters


def _header_parameters(operation: Operation) -> list[dict[str, Any]]:
    headers = dict(operation.headers)
    if operation.writes:
        headers["Idempotency-Key"] = "a retry with the same key and body answers what the first answered"
    patterns = {
        "If-Match": r'^"[1-9][0-9]{0,8}"$',
        "X-Content-SHA256": "^[0-9a-f]{64}$",
        "Idempotency-Key": "^[!-~]{1,255}$",
        "X-Retain-Until": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        "Range": "^bytes=[0-9]{1,12}-[0-9]{0,12}$",
    }
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": text,
            "schema": {"type": "string", "pattern": patterns[name]},
        }
        for name, text in headers.items()
    ]


def _responses(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    request_id = {"X-Request-Id": {"schema": {"type": "string"}}}
    for status, shape in operation.answers.items():
        headers = dict(request_id)
        if operation.writes:
            headers["X-Audit-Seq"] = {"schema": {"type": "integer"}}
        if status == 302:
            headers["Location"] = {"schema": {"type": "string", "format": "uri"}}
        response: dict[str, Any] = {"description": _DESCRIPTIONS[status], "headers": headers}
        if shape is str:
            response["content"] = {"text/plain": {"schema": {"type": "string"}}}
        elif shape is bytes:
            response["content"] = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
        elif shape is not None:
            response["content"] = {"application/json": {"schema": _ref(shape)}}
        responses[str(status)] = response
    raised = (*operation.errors, *_ALWAYS, *(_WITH_BODY if operation.body is not None else ()))
    if operation.streams:
        raised += (errors.MalformedJson, errors.UnsupportedMediaType)
    by_status: dict[int, list[str]] = {}
    for error in raised:
        codes = by_status.setdefault(error.status, [])
        if error.code not in codes:
            codes.append(error.code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {
            "description": ", ".join(codes),
            "headers": request_id,
            "content": {"application/json": {"schema": _ref(schemas.ErrorAnswer)}},
        }
    return responses


_DESCRIPTIONS = {
    200: "Answered",
    201: "Written",
    202: "Written; not yet searchable",
    204: "Written",
    206: "A part of the bytes",
    302: "Where the bytes are for five minutes",
}


def _health_paths() -> dict[str, Any]:
    def probe(name: str, summary: str, shape: type, statuses: Iterable[int]) -> dict[str, Any]:
        content = {"application/json": {"schema": _ref(shape)}}
        responses = {str(status): {"description": summary, "content": content} for status in statuses}
        return {
            "get": {"operationId": name, "summary": summary, "tags": ["health"], "security": [], "responses": responses}
        }

    text = {"200": {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    refused = {"description": "UNAUTHENTICATED", "content": {"application/json": {"schema": _ref(schemas.ErrorAnswer)}}}
    return {
        "/livez": probe("livez", "The process answers", schemas.LiveAnswer, (200,)),
        "/healthz": probe("healthz", "Database and adapters", schemas.HealthAnswer, (200, 503)),
        "/readyz": probe("readyz", "Migrations applied, signer usable", schemas.ReadyAnswer, (200, 503)),
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "Prometheus metrics: for this machine, or with a token",
                "tags": ["health"],
                "security": [{}, {"bearer": []}, {"apiKey": []}],
                "responses": text | {"401": refused},
            }
        },
    }


def _components() -> dict[str, Any]:
    types: list[type] = [schemas.ErrorAnswer, schemas.HealthAnswer, schemas.ReadyAnswer, schemas.LiveAnswer]
    for operation in OPERATIONS:
        types += [t for t in (operation.body, *operation.answers.values()) if t not in (None, bytes, str)]
    _, components = msgspec.json.schema_components(list(dict.fromkeys(types)), ref_template=_REF)
    # Rules between members, which the handlers hold and a type cannot say.
    components[schemas.PatchNodeBody.__name__]["minProperties"] = 1
    components[schemas.SearchBody.__name__]["anyOf"] = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in ("query", "queryEmbedding")
    ]
    return dict(sorted(components.items()))


def _ref(shape: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=shape.__name__)}
