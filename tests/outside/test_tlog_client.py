"""The log as clients of C2SP transparency logs see it over HTTP, without a token, by nothing but the printed verifier key.

Two clients: one in ``tests/support/tlog_client.py``, written from the specifications, and ``aics-tlog`` from PyPI where it is
installed (it asks for Python 3.12: ``pip install aics-tlog``).
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterator

import httpx2
import pytest

from tests.api.door import check_error, connect, eventually
from tests.support.product import Product, running_product
from tests.support.tlog_client import Refused, TlogClient


@pytest.fixture(scope="module")
def public() -> Iterator[Product]:
    """A product that serves its tiles to everybody."""
    with running_product(environment={"AUDIT_PUBLIC": "tiles", "EMBEDDINGS_PROVIDER": "none"}) as running:
        yield running


@pytest.fixture(scope="module")
def leaf(public: Product) -> tuple[int, bytes]:
    """Place and leaf hash of an entry that a write answered with; the log has more than one tile by then."""
    with connect(public, f"t-{uuid.uuid4().hex[:12]}") as http:
        many = [{"owner": "ann", "content": f"secret {n}"} for n in range(300)]
        assert http.post("/v1/memory/nodes:batch", json=many).status_code in (200, 202)
        made = http.post("/v1/memory/nodes", json={"owner": "ann", "content": "secret of all"}).json()["audit"]

        def size() -> int:
            answer = httpx2.get(public.url + "/v1/audit/checkpoint")
            return int(answer.text.split("\n")[1]) if answer.status_code == 200 else 0

        eventually(size, lambda found: found > made["seq"])
    return made["seq"], bytes.fromhex(made["hash"])


@pytest.fixture
def vkey(public: Product) -> str:
    printed = public.ctl("audit", "vkey", "--data", str(public.data))
    assert (printed.returncode, printed.stderr) == (0, "")
    (line,) = printed.stdout.splitlines()
    return line


def test_the_verifier_key_has_the_form_of_a_signed_note(public: Product, vkey: str) -> None:
    name, key_id, key = vkey.split("+", 2)
    raw = base64.b64decode(key, validate=True)
    assert (len(raw), raw[0]) == (33, 1)
    assert key_id == hashlib.sha256(name.encode() + b"\n" + raw).hexdigest()[:8]
    found = json.loads(public.ctl("audit", "vkey", "--data", str(public.data), "--json").stdout)
    assert (found["origin"], [k["vkey"] for k in found["keys"]]) == (name, [vkey])


def test_a_client_written_from_the_specifications_verifies_the_log(
    public: Product, vkey: str, leaf: tuple[int, bytes]
) -> None:
    client = TlogClient(public.url + "/v1/audit", vkey)
    size, root = client.checkpoint()
    hashes = client.leaves(size, root)
    assert hashes[leaf[0]] == leaf[1]
    with connect(public, "t-more") as http:
        assert http.post("/v1/memory/nodes", json={"owner": "ann"}).status_code == 201
    later, later_root = eventually(client.checkpoint, lambda found: found[0] > size)
    client.consistency(size, root, later, later_root)
    with pytest.raises(Refused):
        client.consistency(size, bytes(32), later, later_root)
    name, _, key = vkey.split("+", 2)
    other = bytes([1]) + bytes(reversed(base64.b64decode(key)[1:]))
    forged = hashlib.sha256(name.encode() + b"\n" + other).hexdigest()[:8]
    with pytest.raises(Refused):
        TlogClient(client.prefix, f"{name}+{forged}+{base64.b64encode(other).decode()}").checkpoint()


def test_aics_tlog_verifies_the_log(public: Product, vkey: str, leaf: tuple[int, bytes]) -> None:
    aics = pytest.importorskip("aics_tlog", reason="aics-tlog is not installed: it asks for Python 3.12")
    reader = aics.HttpTileReader([public.url + "/v1/audit/"], proxies={})
    note = httpx2.get(public.url + "/v1/audit/checkpoint").content
    judged = aics.verify_checkpoint(aics.parse_note(note), aics.parse_vkey(vkey))
    assert judged.ok, judged
    report = aics.audit_tiles(reader, judged.size, judged.root, entries=False)
    assert report.tiles >= 3
    verified = aics.VerifiedTileReader(reader, judged.size, judged.root)
    path = aics.inclusion_proof_from_tiles(verified, leaf[0], judged.size)
    assert aics.verify_inclusion(leaf[1], leaf[0], judged.size, path, judged.root)


def test_what_is_public_shows_hashes_and_counts_and_nothing_else(public: Product, leaf: tuple[int, bytes]) -> None:
    with httpx2.Client(base_url=public.url) as http:
        for path in ("checkpoint", "tile/0/000", "consistency?from=1"):
            answer = http.get(f"/v1/audit/{path}")
            assert answer.status_code == 200
            assert b"secret" not in answer.content
        assert http.get("/v1/audit/tile/0/000").headers["cache-control"] == "public, max-age=31536000, immutable"
        check_error(http.get("/v1/audit/tile/entries/000"), 401, "UNAUTHENTICATED")
        for path in ("events", f"events/{uuid.uuid4()}", f"events/{uuid.uuid4()}/proof"):
            check_error(http.get(f"/v1/audit/{path}"), 401, "UNAUTHENTICATED")
        check_error(http.get("/v1/memory/nodes"), 401, "UNAUTHENTICATED")
        # A token that is sent is checked.
        wrong = {"Authorization": "Bearer none"}
        check_error(http.get("/v1/audit/checkpoint", headers=wrong), 401, "UNAUTHENTICATED")
    with connect(public, "t-few", ("memory:read",)) as http:
        check_error(http.get("/v1/audit/checkpoint"), 403, "FORBIDDEN")
    with connect(public, "t-all", ("audit:all",)) as http:
        assert http.get("/v1/audit/tile/entries/000").status_code == 200
        assert http.get("/v1/audit/tile/0/000").headers["cache-control"] == "private, max-age=31536000, immutable"


@pytest.mark.slow
def test_only_the_checkpoint_is_public_where_the_operator_says_so() -> None:
    with running_product(environment={"AUDIT_PUBLIC": "checkpoint", "EMBEDDINGS_PROVIDER": "none"}) as running:
        with connect(running, "t-one") as http:
            assert http.post("/v1/memory/nodes", json={"owner": "ann"}).status_code == 201
        url = f"{running.url}/v1/audit/"
        eventually(lambda: httpx2.get(f"{url}checkpoint"), lambda answer: answer.status_code == 200)
        for path in ("tile/0/000.p/1", "consistency?from=1", "tile/entries/000.p/1", "events"):
            check_error(httpx2.get(url + path), 401, "UNAUTHENTICATED")


def test_nothing_is_public_by_default(product: Product) -> None:
    for path in ("checkpoint", "tile/0/000", "consistency?from=1"):
        check_error(httpx2.get(f"{product.url}/v1/audit/{path}"), 401, "UNAUTHENTICATED")
