"""The language of a node's text, as its writer says: its words are stemmed by it."""

from __future__ import annotations

import httpx2
import pytest

from tests.api.door import check_error, create, eventually, found_ids

NODES = "/v1/memory/nodes"


def test_a_declared_language_finds_what_the_text_does_not_tell(http: httpx2.Client) -> None:
    """One word tells no language: its plural is found once its writer says which it is."""
    node = create(http, content="H\u00e4user", language="de")
    assert http.get(f"{NODES}/{node}").json()["language"] == "de"
    other = create(http, content="H\u00e4user")
    assert http.get(f"{NODES}/{other}").json()["language"] is None
    eventually_found(http, "Haus", [node])
    assert http.patch(f"{NODES}/{other}", json={"language": "de"}).json()["version"] == 2
    eventually_found(http, "Haus", [node, other])


def eventually_found(http: httpx2.Client, query: str, nodes: list[str]) -> None:
    eventually(lambda: sorted(found_ids(http, query=query, mode="keyword")), lambda ids: ids == sorted(nodes))


@pytest.mark.parametrize("value", ["", "german", "DE", "d", "de\n", 7, ["de"]])
def test_what_is_no_code_is_refused(http: httpx2.Client, value: object) -> None:
    check_error(http.post(NODES, json={"owner": "ann", "content": "x", "language": value}), 422, "VALIDATION_ERROR")
