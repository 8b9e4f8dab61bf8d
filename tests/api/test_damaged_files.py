"""Files that rot in the store: no flipped byte is served as if it were right, and the same bytes, sent again, repair them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.door import check_error, sha256
from tests.api.test_artifacts import ARTIFACTS, MEGABYTE, damage, on_disk, store
from tests.support.product import Product

LARGE = b"".join(n.to_bytes(4, "big") + MEGABYTE[4:] for n in range(5)) + b"the end"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    damage(path, bytes(content))


def ranged(http: httpx2.Client, artifact: str, first: int, last: int) -> httpx2.Response:
    return http.get(f"{ARTIFACTS}/{artifact}/content", headers={"Range": f"bytes={first}-{last}"})


def entries_of(product: Product, artifact: str) -> list[tuple[str, dict[str, Any]]]:
    with product.owner() as owner:
        owner.execute("SET memory.all_tenants = 'on'")
        found = owner.execute(
            "SELECT e.event_type, convert_from(p.payload, 'UTF8')::jsonb FROM audit_events e JOIN audit_payloads p USING (log, seq)"
            " WHERE e.artifact_id = %s ORDER BY e.seq",
            [artifact],
        )
        return [(kind, payload) for kind, payload in found]


def fault_of(http: httpx2.Client, artifact: str) -> str | None:
    fault: str | None = http.get(f"{ARTIFACTS}/{artifact}").json()["fault"]
    return fault


@pytest.mark.parametrize("at", [0, 4321, len(MEGABYTE) + 5, len(LARGE) - 1])
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_flipped_byte_is_never_served_by_a_range(
    http: httpx2.Client, product: Product, tenant: str, at: int, size: str
) -> None:
    content = LARGE if size == "large" else LARGE[:5000]
    at = min(at, len(content) - 1)
    artifact = store(http, content)
    flip(on_disk(product, tenant), at)
    for first, last in ((at, at), (max(0, at - 10), min(len(content) - 1, at + 10)), (0, len(content) - 1), (0, 0)):
        check_error(ranged(http, artifact, first, last), 503, "OBJECT_STORE_UNAVAILABLE")
    assert fault_of(http, artifact) == "corrupt"
    kinds = [kind for kind, _ in entries_of(product, artifact)]
    assert kinds == ["memory.artifact.created", "memory.artifact.corrupt"]  # once, however often it is read


def test_a_byte_that_flips_after_a_range_was_served(http: httpx2.Client, product: Product, tenant: str) -> None:
    """What was right when the file was read whole is held against every block that is served afterwards, ranges or whole."""
    artifact = store(http, LARGE)
    assert ranged(http, artifact, 10, 19).content == LARGE[10:20]
    flip(on_disk(product, tenant), 2 * len(MEGABYTE) + 77)
    untouched = ranged(http, artifact, len(MEGABYTE) - 5, len(MEGABYTE) + 5)
    assert (untouched.status_code, untouched.content) == (206, LARGE[len(MEGABYTE) - 5 : len(MEGABYTE) + 6])
    check_error(ranged(http, artifact, 2 * len(MEGABYTE), 2 * len(MEGABYTE)), 503, "OBJECT_STORE_UNAVAILABLE")
    assert fault_of(http, artifact) == "corrupt"
    (_, found) = entries_of(product, artifact)[-1]
    assert (found["fault"], found["foundBy"], found["foundAt"]) == ("corrupt", "read", 2 * len(MEGABYTE))


@pytest.mark.parametrize("warm", [False, True])
def test_a_whole_read_gives_no_byte_of_a_damaged_block_as_if_it_were_right(
    http: httpx2.Client, product: Product, tenant: str, warm: bool
) -> None:
    artifact = store(http, LARGE)
    if warm:
        assert ranged(http, artifact, 0, 0).status_code == 206
    flip(on_disk(product, tenant), 3 * len(MEGABYTE) + 1)
    got = bytearray()

    def read() -> None:
        with http.stream("GET", f"{ARTIFACTS}/{artifact}/content") as down:
            for block in down.iter_bytes():
                got.extend(block)

    with pytest.raises(httpx2.RemoteProtocolError):
        read()
    assert len(got) < len(LARGE)
    if warm:
        assert LARGE.startswith(got)
    assert fault_of(http, artifact) == "corrupt"


@pytest.mark.parametrize("kind", ["cut", "longer", "gone"])
def test_a_file_of_another_length_or_none_is_a_fault_that_a_range_records(
    http: httpx2.Client, product: Product, tenant: str, kind: str
) -> None:
    artifact = store(http, LARGE)
    path = on_disk(product, tenant)
    if kind == "gone":
        path.unlink()
    else:
        damage(path, LARGE[:-1] if kind == "cut" else LARGE + b"x")
    check_error(ranged(http, artifact, 5, 9), 503, "OBJECT_STORE_UNAVAILABLE")
    assert fault_of(http, artifact) == ("missing" if kind == "gone" else "corrupt")


@pytest.mark.parametrize("kind", ["flipped", "cut", "longer", "empty", "zeros"])
def test_the_same_bytes_sent_again_repair_a_damaged_file(
    http: httpx2.Client, product: Product, tenant: str, kind: str
) -> None:
    one, two = store(http, LARGE, name="one"), store(http, LARGE, name="two")
    path = on_disk(product, tenant)
    if kind == "flipped":
        flip(path, 1234)
    else:
        damage(path, {"cut": LARGE[:-1], "longer": LARGE + b"x", "empty": b"", "zeros": bytes(len(LARGE))}[kind])
    rotten = path.read_bytes()
    three = store(http, LARGE, name="three")
    assert path.read_bytes() == LARGE
    assert path.stat().st_mode & 0o077 == 0
    for artifact in (one, two, three):
        assert http.get(f"{ARTIFACTS}/{artifact}/content").content == LARGE
        assert ranged(http, artifact, 1230, 1240).content == LARGE[1230:1241]
        assert fault_of(http, artifact) is None
    for artifact in (one, two):
        (_, (found, facts), (repaired, how)) = entries_of(product, artifact)
        assert (found, repaired) == ("memory.artifact.corrupt", "memory.artifact.verified")
        assert (facts["foundBytes"], facts["foundSha256"]) == (len(rotten), sha256(rotten))
        assert (facts["foundBy"], how["fault"], how["repairedBy"]) == ("upload", None, "upload")
    assert [kind for kind, _ in entries_of(product, three)] == ["memory.artifact.created"]


def test_a_held_and_locked_file_is_repaired_and_stays_held_and_locked(
    http: httpx2.Client, product: Product, tenant: str
) -> None:
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86_400))
    kept = http.put(ARTIFACTS, content=LARGE, headers={"X-Retain-Until": until})
    assert kept.status_code == 201, kept.text
    path = on_disk(product, tenant)
    state = product.data / "objects" / ".state" / tenant / path.parent.name / f"{path.name}~"
    before = state.read_bytes()
    flip(path, 99)
    store(http, LARGE)
    assert path.read_bytes() == LARGE
    assert state.read_bytes() == before


def test_a_duplicate_of_a_file_that_is_right_changes_nothing(
    http: httpx2.Client, product: Product, tenant: str
) -> None:
    one = store(http, LARGE)
    path = on_disk(product, tenant)
    before = path.stat()
    store(http, LARGE)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [kind for kind, _ in entries_of(product, one)] == ["memory.artifact.created"]


def test_damage_of_a_file_that_no_artifact_names_is_on_record(
    http: httpx2.Client, product: Product, tenant: str
) -> None:
    """As a crash between the bytes and their row leaves them."""
    folder = product.data / "objects" / tenant / sha256(LARGE)[:2]
    folder.mkdir(parents=True)
    (folder / sha256(LARGE)).write_bytes(LARGE[:100])
    artifact = store(http, LARGE)
    assert http.get(f"{ARTIFACTS}/{artifact}/content").content == LARGE
    with product.owner() as owner:
        owner.execute("SET memory.all_tenants = 'on'")
        ((payload,),) = owner.execute(
            "SELECT convert_from(p.payload, 'UTF8')::jsonb FROM audit_events e JOIN audit_payloads p USING (log, seq)"
            " WHERE e.event_type = 'ops.object-repair.succeeded' AND convert_from(p.payload, 'UTF8') LIKE %s",
            [f"%{tenant}/{sha256(LARGE)}%"],
        ).fetchall()
    assert (payload["foundBytes"], payload["foundBy"]) == (100, "upload")
