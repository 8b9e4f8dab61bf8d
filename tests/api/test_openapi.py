"""The OpenAPI document: committed, served, complete, and true of the running server."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from memory_layer.api.openapi import document
from tests.api.door import connect, create_indexed, eventually
from tests.support.product import Product

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SPEC = document()
CALLS = [(path, method) for path, methods in SPEC["paths"].items() for method in methods]


def test_the_committed_document_is_the_served_one(product: Product) -> None:
    """After a change: ``memoryctl openapi > docs/openapi.json``."""
    served = httpx2.get(product.url + "/openapi.json")
    assert served.headers["content-type"] == "application/json"
    assert served.json() == json.loads(COMMITTED.read_text())
    assert product.ctl("openapi").stdout == COMMITTED.read_text()


def test_every_route_is_documented_and_every_documented_call_is_routed(product: Product) -> None:
    known = {(path, method) for path, method in CALLS}
    with httpx2.Client(base_url=product.url) as http:
        for path, methods in SPEC["paths"].items():
            concrete = re.sub(r"\{\w+\}", str(uuid.uuid4()), path)
            allowed = http.request("TRACE", concrete).headers["allow"].lower().split(", ")
            assert {method for method in allowed if method != "head"} == {m for p, m in known if p == path}, path
            assert methods


@pytest.mark.parametrize(("path", "method"), CALLS)
def test_every_call_is_described(path: str, method: str) -> None:
    call = SPEC["paths"][path][method]
    assert call["operationId"]
    assert call["summary"]
    names = set(re.findall(r"{(\w+)}", path))
    assert {p["name"] for p in call.get("parameters", []) if p["in"] == "path"} == names
    for status, response in call["responses"].items():
        assert response["description"], (path, status)
        if status not in ("204", "302"):
            assert response["content"], (path, status)
    if call.get("security") is None:
        assert {"401", "403", "422", "503"} <= set(call["responses"])


def test_every_reference_resolves() -> None:
    text = json.dumps(SPEC)
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names == set(SPEC["components"]["schemas"])


@pytest.fixture(scope="module")
def live(product: Product) -> Iterator[tuple[Any, dict[str, str], dict[str, str], requests.Session]]:
    """The schema as served, a token, ids that exist, and a connection."""
    tenant = f"t-{uuid.uuid4().hex[:12]}"
    with connect(product, tenant) as http:
        node = create_indexed(http, content="something to find", legalHold=True)
        artifact = http.put("/v1/memory/artifacts", content=b"0123456789", params={"memoryNodeId": node})
        known = {"nodes": node, "artifacts": artifact.json()["artifactId"], "events": artifact.json()["auditId"]}
        known["object"] = artifact.json()["url"]
        made = http.post("/v1/admin/api-keys", json={"service": "fuzzed", "scopes": ["memory:read"]}).json()
        known |= {"api-keys": made["apiKeyId"], "principals": made["principalId"], "tenant": f"{tenant}-b"}
        operator = {"Authorization": f"Bearer {product.issue()}"}  # of ADMIN_TENANT
        assert http.post("/v1/admin/tenants", json={"tenant": f"{tenant}-b"}, headers=operator).status_code == 201
        known["vectors"] = http.get(f"/v1/memory/nodes/{node}").json()["vector"]["jobId"]
        eventually(
            lambda: http.get(f"/v1/audit/events/{known['events']}/proof").status_code, lambda status: status == 200
        )
    schema = schemathesis.openapi.from_url(product.url + "/openapi.json")
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    with requests.Session() as session:
        yield schema, headers, known, session


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), CALLS)
def test_the_server_keeps_to_its_document(
    live: tuple[Any, dict[str, str], dict[str, str], requests.Session],
    product: Product,
    path: str,
    method: str,
    mode: GenerationMode,
) -> None:
    schema, headers, known, session = live
    if "/admin/tenants" in path:
        headers = {"Authorization": f"Bearer {product.issue()}"}  # of ADMIN_TENANT
    operation = schema[path][method.upper()]
    if mode is GenerationMode.NEGATIVE and not (operation.definition.raw.get("parameters") or operation.body):
        pytest.skip("takes nothing that could be wrong")
    seen: list[int] = []

    def run(**fixed: Any) -> None:
        @settings(
            max_examples=20,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode, **fixed))
        def fuzz(case: Any) -> None:
            response = case.call(base_url=product.url, session=session, headers=headers)
            seen.append(response.status_code)
            case.validate_response(response, checks=CHECKS, headers=headers)

        fuzz()

    if path.endswith("/tile/{path}") and mode is GenerationMode.POSITIVE:
        # A parameter with slashes in it is nothing that could be made up from the document.
        run(path_parameters={"path": "0/000.p/1"})
        run(path_parameters={"path": "entries/000.p/1"})
        run(path_parameters={"path": "63/x999/000"})
    elif "{tenant}" in path:
        run(path_parameters={"tenant": known["tenant"]})  # and none that another test uses
    else:
        run()
    if "{id}" in path:
        # Random ids are unknown: what follows behind a 404 is reached with one that exists, and no If-Match.
        run(path_parameters={"id": known[path.split("/")[3]]}, headers={})
    if path.endswith("/artifacts") and method == "post" and mode is GenerationMode.POSITIVE:
        # Nor is an object that lies there already: the uploaded one does.
        run(body={"url": known["object"], "sha256": hashlib.sha256(b"0123456789").hexdigest(), "sizeBytes": 10})
    if path.endswith("/retention") and mode is GenerationMode.POSITIVE:
        run(path_parameters={"id": known["artifacts"]}, body={"retainUntil": "2090-01-01T00:00:00Z"}, headers={})
    if path.endswith("/api-keys") and method == "post" and mode is GenerationMode.POSITIVE:
        run(body={"service": "fuzzed", "scopes": ["memory:read"]})  # and not for a tenant that is somebody else's
    if path.endswith("/search"):
        # Random filters name no field.
        run(body={"query": "something", "topK": 3})
    assert seen
    if mode is GenerationMode.POSITIVE:
        assert any(status < 300 or status == 409 for status in seen), sorted(set(seen))
