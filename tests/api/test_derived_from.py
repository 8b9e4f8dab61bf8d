"""A node says from which nodes it was made: the column that CONTRIBUTING's "Add a column" was tried with."""

from __future__ import annotations

import httpx2
import pytest

from tests.api.door import check_error, create
from tests.support.product import Product

NODES = "/v1/memory/nodes"


def sources(http: httpx2.Client) -> list[str]:
    return [create(http, content=text) for text in ("one turn", "another turn")]


def test_it_is_written_read_and_changed(http: httpx2.Client) -> None:
    made_from = sources(http)
    node = create(http, content="a summary", derivedFrom=made_from)
    assert http.get(f"{NODES}/{node}").json()["derivedFrom"] == made_from
    assert http.get(f"{NODES}/{made_from[0]}").json()["derivedFrom"] is None
    for value in (made_from[:1], [], None):
        assert http.patch(f"{NODES}/{node}", json={"derivedFrom": value}).status_code == 200
        assert http.get(f"{NODES}/{node}").json()["derivedFrom"] == value


@pytest.mark.parametrize(
    "value", [["not an id"], ["A" * 36], "x", [None], ["01a226ab-d1e6-767d-9586-2bd5c86b51e0\n"], [""] * 65]
)
def test_what_is_no_id_is_refused(http: httpx2.Client, value: object) -> None:
    check_error(http.post(NODES, json={"owner": "ann", "derivedFrom": value}), 422, "VALIDATION_ERROR")


def test_under_a_hold_it_stays(http: httpx2.Client) -> None:
    node = create(http, content="a summary", derivedFrom=sources(http), legalHold=True)
    check_error(http.patch(f"{NODES}/{node}", json={"derivedFrom": None}), 409, "LEGAL_HOLD")


def test_a_change_behind_the_log_is_refused_and_put_back(product: Product, http: httpx2.Client) -> None:
    node = create(http, content="a summary", derivedFrom=sources(http))
    with product.owner() as owner:
        before = owner.execute("SELECT derived_from FROM memory_nodes WHERE id = %s", [node]).fetchone()
        owner.execute("UPDATE memory_nodes SET derived_from = NULL WHERE id = %s", [node])
        check_error(http.get(f"{NODES}/{node}"), 409, "TAMPERED")
        assert before is not None
        owner.execute("UPDATE memory_nodes SET derived_from = %s WHERE id = %s", [before[0], node])
    assert http.get(f"{NODES}/{node}").status_code == 200
