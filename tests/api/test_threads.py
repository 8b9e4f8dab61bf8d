"""A node says what it is a part of, and its place there."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.api.door import check_error, create, listed_ids
from tests.support.product import Product

NODES = "/v1/memory/nodes"


def place_of(http: httpx2.Client, node: str) -> tuple[Any, Any]:
    body = http.get(f"{NODES}/{node}").json()
    return body["thread"], body["position"]


def test_it_is_written_read_changed_and_filtered(http: httpx2.Client) -> None:
    alone = create(http, content="a note")
    first = create(http, content="a turn", thread="a talk", position=0)
    far = create(http, content="another", thread="a talk", position=2**53 - 1)
    timed = create(http, content="a third", thread="a talk", occurredAt="2026-01-02T03:04:05Z")
    assert [place_of(http, node) for node in (alone, first, far, timed)] == [
        (None, None), ("a talk", 0), ("a talk", 2**53 - 1), ("a talk", None)]  # fmt: skip
    assert listed_ids(http, filter=json.dumps({"thread": "a talk"})) == [timed, far, first]
    assert listed_ids(http, filter=json.dumps({"thread": "a talk", "position": {"$lt": 7}})) == [first]
    for patch, place in (
        ({"position": 7}, ("a talk", 7)),
        ({"thread": "another talk"}, ("another talk", 7)),
        ({"position": None}, ("another talk", None)),
        ({"position": 9, "thread": "x"}, ("x", 9)),
        ({"thread": None}, (None, None)),
        ({"thread": None, "position": None}, (None, None)),
    ):
        assert http.patch(f"{NODES}/{first}", json=patch).status_code == 200, patch
        assert place_of(http, first) == place, patch


@pytest.mark.parametrize(
    "given",
    [
        {"thread": ""},
        {"thread": "x" * 513},
        {"thread": 7},
        {"thread": ["x"]},
        {"thread": "a\x00b"},
        {"thread": "x", "position": -1},
        {"thread": "x", "position": 2**53},
        {"thread": "x", "position": 1.5},
        {"thread": "x", "position": "1"},
        {"thread": "x", "position": True},
        {"thread": "x", "position": 1e400},
        {"position": 1},
        {"thread": None, "position": 1},
    ],
)
def test_what_is_no_place_is_refused_alone(http: httpx2.Client, given: dict[str, Any]) -> None:
    # A number that JSON cannot hold is written as it would be sent.
    def send(method: str, url: str, body: Any) -> httpx2.Response:
        text = json.dumps(body).replace("Infinity", "1e400")
        return http.request(method, url, content=text, headers={"Content-Type": "application/json"})

    check_error(send("POST", NODES, {"owner": "ann", **given}), 422, "VALIDATION_ERROR")
    node = create(http, content="a note")
    check_error(send("PATCH", f"{NODES}/{node}", given), 422, "VALIDATION_ERROR")
    assert place_of(http, node) == (None, None)
    made = send("POST", f"{NODES}:batch", [{"owner": "ann", **given}, {"owner": "ann", "thread": "t", "position": 3}])
    refused, good = made.json()["items"]
    assert refused["error"]["code"] == "VALIDATION_ERROR"
    assert place_of(http, good["memoryNodeId"]) == ("t", 3)


def test_a_put_names_both_or_takes_them_away(http: httpx2.Client) -> None:
    url = f"{NODES}/by-external/mine"
    check_error(http.put(url, json={"owner": "ann", "position": 1}), 422, "VALIDATION_ERROR")
    node = http.put(url, json={"owner": "ann", "thread": "a talk", "position": 1}).json()["memoryNodeId"]
    assert place_of(http, node) == ("a talk", 1)
    check_error(http.put(url, json={"owner": "ann", "position": 1}), 422, "VALIDATION_ERROR")
    assert http.put(url, json={"owner": "ann"}).status_code == 200
    assert place_of(http, node) == (None, None)


def test_the_longest_thread_of_any_script_fits_its_index(http: httpx2.Client) -> None:
    for text in ("\U0001f9f5" * 512, "線" * 512, " " * 512):
        node = create(http, namespace="n" * 63, thread=text, position=1)
        assert place_of(http, node) == (text, 1)


def test_under_a_hold_it_stays(http: httpx2.Client) -> None:
    node = create(http, content="a turn", thread="a talk", position=4, legalHold=True)
    for patch in ({"thread": "another"}, {"thread": None}, {"position": 5}):
        check_error(http.patch(f"{NODES}/{node}", json=patch), 409, "LEGAL_HOLD")
    assert place_of(http, node) == ("a talk", 4)


def test_a_node_taken_out_of_its_thread_is_what_its_history_says(product: Product, http: httpx2.Client) -> None:
    node = create(http, content="a turn", thread="a talk", position=4)
    assert http.patch(f"{NODES}/{node}", json={"thread": None}).status_code == 200
    done = product.ctl("audit", "verify", "--data", str(product.data))
    assert done.returncode == 10, done.stdout + done.stderr  # consistent, and no anchor was asked


def test_the_command_line_says_it_too(product: Product, http: httpx2.Client) -> None:
    done = product.ctl("node", "create", "a turn", "--thread", "a talk", "--position", "0")
    assert done.returncode == 0, done.stderr
    node = done.stdout.strip()

    def shown() -> tuple[Any, Any]:
        found = json.loads(product.ctl("node", "get", node, "--json").stdout)
        return found["thread"], found["position"]

    assert shown() == ("a talk", 0)
    assert product.ctl("node", "update", node, "--thread", "another", "--position", "3").returncode == 0
    assert shown() == ("another", 3)
    assert product.ctl("node", "update", node, "--thread", "").returncode == 0
    assert shown() == (None, None)
