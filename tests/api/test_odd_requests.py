"""What proxies and editors add to a request is no reason to refuse it."""

from __future__ import annotations

import uuid

import httpx2
import pytest

from tests.api.door import create

NODES = "/v1/memory/nodes"
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "odd", ["", "abc, def", "{0f1e}", "a|b", '"q"', "has blank", "back\\slash", "x" * 129, "\u00e9"]
)
def test_an_odd_request_id_is_replaced(http: httpx2.Client, odd: str) -> None:
    node = create(http, content="x")
    for answer in (
        http.get(f"{NODES}/{node}", headers={"X-Request-Id": odd.encode()}),  # type: ignore[dict-item]
        http.post(NODES, json={"owner": "ann"}, headers={"X-Request-Id": odd.encode()}),  # type: ignore[dict-item]
    ):
        assert answer.is_success
        assert uuid.UUID(answer.headers["x-request-id"]).version == 7


def test_a_byte_order_mark_is_passed_over(http: httpx2.Client) -> None:
    json = {"Content-Type": "application/json"}
    assert http.post(NODES, content=BOM + b'{"owner":"o"}', headers=json).status_code == 201
    lines = {"Content-Type": "application/x-ndjson"}
    for body, kind in ((b'{"owner":"o"}\r\n{"owner":"o"}\r\n', lines), (b'[{"owner":"o"},{"owner":"o"}]', json)):
        made = http.post(f"{NODES}:batch", content=BOM + body, headers=kind).json()
        assert len([item["memoryNodeId"] for item in made["items"]]) == 2
