"""The language of a node's text, as its writer says: its words are stemmed by it."""

from __future__ import annotations

import httpx2
import pytest

from tests.api.door import check_error, create, eventually, found_ids
from tests.support.product import Product

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


def test_a_namespace_has_one_for_nodes_that_declare_none(product: Product, http: httpx2.Client, tenant: str) -> None:
    def ctl(*words: str) -> str:
        where = ("--tenant", tenant, "--namespace", "notizen", "--data", str(product.data))
        done = product.ctl("vectors", "language", *words, *where)
        assert done.returncode == 0, done.stderr
        return str(done.stdout).strip()

    assert ctl() == "none"
    ctl("de")
    assert ctl() == "de"
    node = create(http, namespace="notizen", content="H\u00e4user")
    english = create(http, namespace="notizen", content="H\u00e4user", language="en")
    assert http.get(f"{NODES}/{node}").json()["language"] is None  # it declares none
    eventually(lambda: found_ids(http, query="Haus", mode="keyword", namespace="notizen"), lambda ids: ids == [node])
    assert english not in found_ids(http, query="Haus", mode="keyword", namespace="notizen")
    ctl("none")
    assert ctl() == "none"
    refused = product.ctl("vectors", "language", "german", "--namespace", "notizen", "--data", str(product.data))
    assert (refused.returncode, "ISO 639" in refused.stderr + refused.stdout) == (2, True)


@pytest.mark.parametrize("value", ["", "german", "DE", "d", "de\n", 7, ["de"]])
def test_what_is_no_code_is_refused(http: httpx2.Client, value: object) -> None:
    check_error(http.post(NODES, json={"owner": "ann", "content": "x", "language": value}), 422, "VALIDATION_ERROR")
