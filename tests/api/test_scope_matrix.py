"""Every operation, by every scope alone, in the caller's own tenant and in another one. An operation that is added needs its line in VERDICTS."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest

from memory_layer.api.admin_schemas import ScopeName
from memory_layer.api.operations import OPERATIONS, Operation
from memory_layer.model import SCOPES
from tests.api.door import check_error, connect, create_indexed, eventually, sha256
from tests.support.product import Product

DOCUMENTED = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
SOON = (dt.datetime.now(dt.UTC) + dt.timedelta(days=30)).isoformat()
WIDER = {"audit:read": "audit:all"}
DONE = (200, 201, 202, 204)
ONCE = (*DONE, 409)  # what was done by another line before is a conflict
REASON = {"reason": "the matrix"}


@dataclass(frozen=True)
class Verdict:
    """``own``: how the scope that the operation names is answered in the caller's tenant. ``other``: the same request by a caller of another
    tenant, with ``foreign`` added to its body or query; None: it names nothing, and its answer must not show what another tenant has.
    ``wide``: the same by ``audit:all``. ``operator``: by an admin of ADMIN_TENANT."""

    own: tuple[int, ...] = DONE
    other: int | None = 404
    body: dict[str, Any] | None = None
    query: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    foreign: dict[str, Any] = field(default_factory=dict)
    wide: tuple[int, ...] = DONE
    operator: tuple[int, ...] | None = None


VERDICTS = {
    "createNode": Verdict(other=None, body={"owner": "ann", "content": "made by the matrix"}),
    "createNodes": Verdict(other=None, content=b'[{"owner":"ann"}]'),
    "listNodes": Verdict(other=None),
    "findNodes": Verdict(other=None, body={}),
    "getNode": Verdict(),
    "putNode": Verdict(other=None, body={"owner": "ann"}),
    "patchNode": Verdict(body={"metadata": {"seen": True}}),
    "deleteNode": Verdict(),
    "nodeHistory": Verdict(),
    "setLegalHold": Verdict(body={"legalHold": False, "reason": "the matrix"}),
    "search": Verdict(other=None, body={"query": "something to find"}),
    "uploadArtifact": Verdict(other=None, content=b"the matrix"),
    "registerArtifact": Verdict(
        own=ONCE, other=422, body={"url": "{url}", "sha256": sha256(b"0123456789"), "sizeBytes": 10}
    ),
    "extendRetention": Verdict(body={"retainUntil": SOON}),
    "listArtifacts": Verdict(other=None),
    "getArtifact": Verdict(),
    "artifactContent": Verdict(),
    "deleteArtifact": Verdict(),
    "getIndexingJob": Verdict(),
    "cancelIndexingJob": Verdict(own=ONCE),
    "retryIndexingJob": Verdict(own=ONCE),
    "listEvents": Verdict(other=None),
    "getEvent": Verdict(),
    "eventProof": Verdict(),
    "getCheckpoint": Verdict(other=None),
    "getConsistency": Verdict(other=None),
    "getTile": Verdict(other=None),
    "listTenants": Verdict(other=None, operator=(200,)),
    "createTenant": Verdict(own=(403,), other=403, body={"tenant": "{new}"}, operator=(201,)),
    "revokeTenant": Verdict(own=(403,), other=403, body=REASON, operator=ONCE),
    "reinstateTenant": Verdict(own=(403,), other=403, body=REASON, operator=ONCE),
    "listPrincipals": Verdict(foreign={"tenant": "{tenant}"}, operator=(200,)),
    "createPrincipal": Verdict(body={"service": "{new}"}, foreign={"tenant": "{tenant}"}, operator=ONCE),
    "revokePrincipal": Verdict(own=ONCE, body=REASON, operator=ONCE),
    "reinstatePrincipal": Verdict(own=ONCE, body=REASON, operator=ONCE),
    "revokeToken": Verdict(body={"jti": "{new}", **REASON}, foreign={"tenant": "{tenant}"}, operator=ONCE),
    "listApiKeys": Verdict(foreign={"tenant": "{tenant}"}, operator=(200,)),
    "createApiKey": Verdict(
        body={"service": "{new}", "scopes": ["memory:read"]}, foreign={"tenant": "{tenant}"}, operator=(201,)
    ),
    "rotateApiKey": Verdict(own=ONCE, body={}, operator=ONCE),
    "revokeApiKey": Verdict(own=ONCE, body=REASON, operator=ONCE),
}


@dataclass
class Scene:
    """A tenant that has one of everything, another that has nothing, and a spare one whose end hurts nobody."""

    product: Product
    tenant: str
    stranger: str
    names: dict[str, str]
    http: httpx2.Client

    def ask(self, operation: Operation, verdict: Verdict, of: str, scope: str | None, **more: Any) -> httpx2.Response:
        """``of``: the caller's tenant. ``more``: names that count instead of the scene's, and what is added to body or query."""
        foreign = more.pop("foreign", {})
        names = self.names | {"new": f"m-{uuid.uuid4().hex[:12]}"} | more
        body, query = verdict.body, verdict.query
        if body is None:
            query = query | foreign
        else:
            body = body | foreign
        headers = {"Content-Type": "application/json"}
        if scope is not None:
            headers["Authorization"] = f"Bearer {self.product.issue('matrix', of, [scope])}"
        return self.http.request(
            operation.method,
            path_of(operation, names),
            params={name: filled(value, names) for name, value in query.items()},
            json=None if body is None else {name: filled(value, names) for name, value in body.items()},
            content=verdict.content,
            headers=headers,
        )


def test_a_key_can_be_given_every_scope_that_there_is() -> None:
    assert get_args(ScopeName) == SCOPES


def filled(value: Any, names: dict[str, str]) -> Any:
    return value.format(**names) if isinstance(value, str) else value


def path_of(operation: Operation, names: dict[str, str]) -> str:
    kind = operation.path.split("/")[3]
    known = names | {"id": names.get(f"{kind} {operation.name}", names.get(kind, ""))}
    return re.sub(r"{(\w+)(?::\w+)?}", lambda found: known[found[1]], operation.path)


@pytest.fixture(scope="module")
def scene(product: Product) -> Iterator[Scene]:
    tenant = f"t-{uuid.uuid4().hex[:12]}"
    with connect(product, tenant) as http, connect(product, "default", ("admin",), "operator") as operator:
        node, gone = (create_indexed(http, content="something to find") for _ in range(2))
        files = [http.put("/v1/memory/artifacts", content=b"0123456789").json() for _ in range(2)]
        key = http.post("/v1/admin/api-keys", json={"service": "robot", "scopes": ["memory:read"]}).json()
        assert operator.post("/v1/admin/tenants", json={"tenant": f"{tenant}-spare"}).status_code == 201
        names = {
            "nodes": node,
            "nodes deleteNode": gone,
            "artifacts": files[0]["artifactId"],
            "artifacts deleteArtifact": files[1]["artifactId"],
            "url": files[0]["url"],
            "vectors": http.get(f"/v1/memory/nodes/{node}").json()["vector"]["jobId"],
            "events": files[0]["auditId"],
            "embeddingId": "the-matrix",
            "path": "0/000.p/1",
            "api-keys": key["apiKeyId"],
            "principals": key["principalId"],
            "tenant": tenant,
        }
        proof = f"/v1/audit/events/{names['events']}/proof"
        eventually(lambda: http.get(proof).status_code, lambda status: status == 200)
    with httpx2.Client(base_url=product.url, timeout=30) as client:
        yield Scene(product, tenant, f"s-{uuid.uuid4().hex[:12]}", names, client)


def test_every_operation_has_its_line_and_its_row_in_the_reference() -> None:
    assert sorted(VERDICTS) == sorted(operation.name for operation in OPERATIONS)
    assert {operation.scope for operation in OPERATIONS} <= set(SCOPES)
    rows = [line.split(" | ") for line in DOCUMENTED.read_text().splitlines() if line.startswith("| ")]
    told = {row[0].removeprefix("| "): row[2] for row in rows if len(row) > 3}
    for operation in OPERATIONS:
        call = f"{operation.method} " + re.sub(r"{(\w+):\w+}", r"{\1}", operation.path)
        assert told.get(call, "").startswith(operation.scope), call


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_operation(scene: Scene, operation: Operation) -> None:
    verdict, spare = (
        VERDICTS[operation.name],
        {"tenant": f"{scene.tenant}-spare"} if "{tenant}" in operation.path else {},
    )
    mine = [value for name, value in scene.names.items() if name not in ("embeddingId", "path")]
    check_error(scene.ask(operation, verdict, scene.tenant, None, **spare), 401, "UNAUTHENTICATED")
    enough = {operation.scope, WIDER.get(operation.scope)}
    for scope in SCOPES:
        if scope not in enough:
            for tenant in (scene.tenant, scene.stranger):
                refused = check_error(scene.ask(operation, verdict, tenant, scope, **spare), 403, "FORBIDDEN")
                assert operation.scope in refused["message"]
    stranger = scene.ask(operation, verdict, scene.stranger, operation.scope, **spare, foreign=verdict.foreign)
    if verdict.other is not None:
        assert stranger.status_code == verdict.other, stranger.text
        if verdict.other == 404:  # in the same words as for what is nowhere
            nowhere = {name: str(uuid.uuid4()) for name in scene.names if name not in ("embeddingId", "path", "url")}
            missing = scene.ask(operation, verdict, scene.stranger, operation.scope, **nowhere, foreign=verdict.foreign)
            assert plain(stranger) == plain(missing)
    else:
        assert stranger.status_code in DONE, stranger.text
        assert [value for value in mine if value in stranger.text] == []
    if operation.scope in WIDER:
        wide = scene.ask(operation, verdict, scene.stranger, WIDER[operation.scope])
        assert wide.status_code in verdict.wide, wide.text
    own = scene.ask(operation, verdict, scene.tenant, operation.scope, **spare)
    assert own.status_code in verdict.own, own.text
    if verdict.operator is not None:
        asked = scene.ask(operation, verdict, "default", operation.scope, **spare, foreign=verdict.foreign)
        assert asked.status_code in verdict.operator, asked.text


def plain(answer: httpx2.Response) -> Any:
    """An error without what is the request's own."""
    error = answer.json()["error"] | {"requestId": None}
    ids = r"[0-9a-f]{8}-[0-9a-f-]{27}|t-[0-9a-f]{12}|s3://\S+|file://\S+"
    return answer.status_code, error | {"message": re.sub(ids, "ID", error["message"])}
