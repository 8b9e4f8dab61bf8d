"""What the API's log says of requests: by the id that the caller was given, and nothing of what was sent."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx2

from tests.api.door import create, eventually
from tests.support.product import Product


def _line(product: Product, request_id: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        for line in (product.data / "log" / "api.log").read_text("utf-8").splitlines():
            if line.startswith("{") and (said := json.loads(line)).get("requestId") == request_id and "route" in said:
                return said  # type: ignore[no-any-return]
        return None

    line = eventually(found, lambda seen: seen is not None, 10)
    assert line is not None
    return line


def test_an_answer_is_found_by_its_request_id(product: Product, http: httpx2.Client) -> None:
    node = create(http, content="words that no log holds")
    answer = http.get(f"/v1/memory/nodes/{node}")
    line = _line(product, answer.headers["x-request-id"])
    assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/memory/nodes/{id}", 200)
    assert line["ms"] > 0
    assert (line["level"], "code" in line) == ("info", False)
    log = (product.data / "log" / "api.log").read_text("utf-8")
    assert node not in log
    assert "words that no log holds" not in log
    assert product.token not in log


def test_refusals_are_found_too(product: Product, http: httpx2.Client) -> None:
    for answer, route, code in (
        (http.get(f"/v1/memory/nodes/{uuid.uuid4()}"), "/v1/memory/nodes/{id}", "NOT_FOUND"),
        (
            http.post("/v1/memory/nodes", content=b"{", headers={"content-type": "application/json"}),
            "/v1/memory/nodes",
            "MALFORMED_JSON",
        ),
        (http.get("/v1/memory/nodes", headers={"authorization": "Bearer x"}), "/v1/memory/nodes", "UNAUTHENTICATED"),
        (http.get("/nothing/here"), "-", "NOT_FOUND"),
        (http.delete("/v1/memory/search"), "-", "METHOD_NOT_ALLOWED"),
    ):
        said = answer.json()["error"]
        assert said["code"] == code
        line = _line(product, said["requestId"])
        assert (line["route"], line["status"], line["code"]) == (route, answer.status_code, code)
        assert "error" not in line  # a refusal may repeat what was sent


def test_a_caller_can_name_the_request(product: Product, http: httpx2.Client) -> None:
    name = f"mine-{uuid.uuid4().hex}"
    assert http.get("/v1/memory/nodes", headers={"x-request-id": name}).status_code == 200
    assert _line(product, name)["route"] == "/v1/memory/nodes"


def test_a_trace_goes_through_the_log(http: httpx2.Client, product: Product) -> None:
    trace = uuid.uuid4().hex
    answer = http.get("/v1/memory/nodes", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert _line(product, answer.headers["x-request-id"])["traceId"] == trace
    again = http.get("/v1/memory/nodes")
    assert "traceId" not in _line(product, again.headers["x-request-id"])


def test_each_line_is_json_whatever_wrote_it(product: Product, http: httpx2.Client) -> None:
    assert http.get("/v1/memory/nodes").status_code == 200
    lines = [json.loads(line) for line in (product.data / "log" / "api.log").read_text("utf-8").splitlines()]
    assert [line for line in lines if not {"ts", "level", "logger", "message"} <= line.keys()] == []
    assert {line["logger"].split(".")[0] for line in lines} >= {"memory_layer", "uvicorn"}
