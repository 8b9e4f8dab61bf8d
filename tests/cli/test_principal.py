"""`memoryctl principal`: a service that is refused, and let in again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.door import check_error, connect, create, eventually
from tests.support.product import Product

REASON = ("--reason", "its token was in a repository, case 12")


def ctl(product: Product, *words: str, code: int = 0) -> Any:
    done = product.ctl("principal", *words, "--data", str(product.data), "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def listed(product: Product, tenant: str) -> list[tuple[str, bool]]:
    found = ctl(product, "list", "--tenant", tenant)["principals"]
    return [(one["service"], one["revokedAt"] is not None) for one in found]


def events(product: Product, since: int) -> list[tuple[str, Any]]:
    """Those about principals, with their payloads."""
    with product.owner() as connection:
        found = connection.execute(
            "SELECT event_type, convert_from(payload, 'UTF8') FROM audit_events JOIN audit_payloads p USING (log, seq)"
            " WHERE seq > %s AND event_type LIKE 'ops.principal-%%ed.succeeded' ORDER BY seq",
            [since],
        )
        return [(str(row[0]), json.loads(str(row[1]))) for row in found]


def last(product: Product) -> int:
    with product.owner() as connection:
        return int(str(connection.execute("SELECT max(seq) FROM audit_events").fetchall()[0][0]))


def test_a_revoked_service_is_refused_and_nobody_else(product: Product, tenant: str) -> None:
    with connect(product, tenant) as http, connect(product, tenant, service="other") as other:
        node = create(http, content="the north gate")
        create(other, content="the south gate")
        ctl(product, "revoke", "tester", "--tenant", tenant, *REASON, "--yes")
        refused = eventually(
            lambda: http.get(f"/v1/memory/nodes/{node}"), lambda answer: answer.status_code != 200, within=5
        )
        assert "revoked" in check_error(refused, 401, "UNAUTHENTICATED")["message"]
        check_error(http.post("/v1/memory/nodes", json={"owner": "ann", "content": "x"}), 401, "UNAUTHENTICATED")
        # Another token of it, and the same name in another tenant.
        with connect(product, tenant, ("memory:read",)) as again:
            check_error(again.get(f"/v1/memory/nodes/{node}"), 401, "UNAUTHENTICATED")
        with connect(product, tenant + "-b") as namesake:
            create(namesake, content="the east gate")
        assert other.get(f"/v1/memory/nodes/{node}").json()["content"] == "the north gate"
        assert listed(product, tenant) == [("other", False), ("tester", True)]
        ctl(product, "reinstate", "tester", "--tenant", tenant, "--reason", "a new key", "--yes")
        assert http.get(f"/v1/memory/nodes/{node}").status_code == 200  # a refusal is not remembered
        assert listed(product, tenant) == [("other", False), ("tester", False)]


def test_one_that_only_reads_is_refused_too(product: Product, tenant: str) -> None:
    """It has no row before: it gets one, with the entry that says who it is."""
    with connect(product, tenant, service="reader") as http:
        assert http.get("/v1/memory/nodes").status_code == 200
        before = last(product)
        facts = ctl(product, "revoke", "reader", "--tenant", tenant, *REASON, "--yes")["facts"]
        created, revoked = events(product, before)
        assert (created[0], created[1]["service"]) == ("ops.principal-created.succeeded", "reader")
        assert revoked == (
            "ops.principal-revoked.succeeded",
            {"id": created[1]["id"], "reason": REASON[1], "revokedAt": facts["revokedAt"]},
        )
        eventually(lambda: http.get("/v1/memory/nodes").status_code, lambda status: status == 401, within=5)


def test_what_would_change_nothing_is_reported(product: Product, tenant: str) -> None:
    assert "knows no service ann" in ctl(product, "reinstate", "ann", "--tenant", tenant, *REASON, "--yes", code=1)
    ctl(product, "revoke", "ann", "--tenant", tenant, *REASON, "--yes")
    before = last(product)
    assert "is revoked already, since 2" in ctl(product, "revoke", "ann", "--tenant", tenant, *REASON, "--yes", code=1)
    ctl(product, "reinstate", "ann", "--tenant", tenant, *REASON, "--yes")
    assert "is not revoked" in ctl(product, "reinstate", "ann", "--tenant", tenant, *REASON, "--yes", code=1)
    assert [type_ for type_, _ in events(product, before)] == ["ops.principal-reinstated.succeeded"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("memoryctl", "--tenant", "_system", *REASON), "tenant must match"),
        (("an n", *REASON), "service must match"),
        (("ann", "--reason", " "), "reason must be one line"),
        (("ann", "--reason", "x" * 501), "reason must be one line"),
        (("ann", "--reason", "two\nlines"), "reason must be one line"),
    ],
)
def test_what_does_not_fit_changes_nothing(product: Product, words: tuple[str, ...], said: str) -> None:
    before = last(product)
    assert said in ctl(product, "revoke", *words, "--yes", code=2)
    assert events(product, before) == []


def test_nobody_is_refused_without_a_yes(product: Product, tenant: str) -> None:
    said = ctl(product, "revoke", "ann", "--tenant", tenant, *REASON, code=2)
    assert f"Refuse service ann of tenant {tenant}? Say --yes if so." in said
    assert listed(product, tenant) == []
