"""Parts of an archive whose seals rest on a delegation that an earlier segment holds."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memory_layer import canonical
from memory_layer.audit import seal, trust_root
from memory_layer.audit.archive import key_entries, local_segments, verify_archive
from memory_layer.audit.segment import PAYLOADS
from memory_layer.audit.trust_root import KeyEntry, Purpose, TrustedKey, TrustRoot
from memory_layer.audit.verdict import Verdict
from memory_layer.ops.archive import drill, write
from memory_layer.ops.archive.write import Written
from memory_layer.ops.operate import Run, operate
from memory_layer.ops.report import Report
from memory_layer.service.actions.log import Record
from memory_layer.service.actions.principals import Introduce
from memory_layer.service.commit import Change
from memory_layer.service.installation import Installation
from memory_layer.service.principals import known_caller
from tests.integration.test_archive import other as other  # noqa: PLC0414 - a fixture
from tests.support.real_archive import archive_all
from tests.support.service import create, running_memory, verify
from tests.support.triggers import switch_off, switch_on

Database = Callable[[str], str]
DELEGATE, LOCAL = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
EXPIRY = "2099-01-01T00:00:00.000000Z"
EACH = 4  # entries in a segment


def trusted(key: Ed25519PrivateKey, purpose: Purpose, from_seq: int = 0) -> TrustedKey:
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return trust_root.trusted_key("ed25519", der, purpose, from_seq)


@dataclass
class Delegated:
    """An archived log that a delegated key sealed from some entry on; ``activated`` is the entry that lets it."""

    memory: Installation
    data: Path
    root: TrustRoot
    activated: int
    written: list[Written]

    @property
    def folder(self) -> Path:
        return self.data / "archive" / write.prefix_of(self.root.origin) / "segments"

    @property
    def last(self) -> Written:
        """A segment that only the delegated key sealed, and that does not follow the one with the delegation."""
        return next(one for one in self.written if one.first > self.activated + 2 * EACH)

    @property
    def carrier(self) -> Written:
        return next(one for one in self.written if one.first <= self.activated <= one.last)

    def segment(self, one: Written) -> Path:
        return self.folder / one.key.split("/")[-2]


@pytest.fixture
async def delegated(database: Database, tmp_path: Path) -> AsyncIterator[Delegated]:
    data = tmp_path / "installation"
    async with running_memory(database("memory_app"), data) as memory:
        for n in range(6):
            await create(memory, content=f"before {n}")
    old = trust_root.load((data / "trust-root.json").read_bytes())
    pinned = trust_root.dump(old.origin, [*old.keys, trusted(DELEGATE, "delegate")], old.version + 1)
    (data / "trust-root.json").write_bytes(pinned)
    root = trust_root.load(pinned)
    async with running_memory(database("memory_app"), data) as memory:
        activated = await activate(memory, root)
        for n in range(4 * EACH):
            await create(memory, content=f"after {n}")
    await asyncio.to_thread(reseal, database("postgres"), activated)
    async with running_memory(database("memory_app"), data) as memory:
        # No server signs by a delegation yet, so none would write behind a seal of such a key; verifiers know them all the same.
        memory.committer.guard.check = lambda _row, _last: None  # type: ignore[method-assign]
        written = await archive_all(memory, entries=EACH)
        yield Delegated(memory, data, root, activated, written)


async def activate(memory: Installation, root: TrustRoot) -> int:
    """Let the local key seal from the entry after this one on, which is returned."""
    seal_keys = [key for key in root.keys if key.purpose == "delegate"]
    postgres = memory.postgres
    caller = await known_caller(postgres, "memoryctl")
    await memory.committer.submit(Change(caller, Introduce()))
    with psycopg.connect(postgres.dsn) as connection:
        connection.execute("SELECT set_config('memory.all_tenants', 'on', false)")
        ((last,),) = connection.execute("SELECT max(seq) FROM audit_events").fetchall()
    key = trusted(LOCAL, "seal", last + 2)
    signature = DELEGATE.sign(trust_root.delegation_text(root.origin, key, expiry=EXPIRY, delegate=seal_keys[0]))
    payload = trust_root.activation_payload(key, trust_root.Delegation(seal_keys[0].key_id, EXPIRY, signature))
    outcome = await memory.committer.submit(Change(caller, Record("audit.key.activated", json.loads(payload)), None))
    assert outcome.receipt is not None
    assert outcome.receipt.seq == last + 1
    return int(outcome.receipt.seq)


def reseal(dsn: str, activated: int) -> None:
    """Seal all later batches with the delegated key, as a server would that signs with it."""
    key = trusted(LOCAL, "seal", activated + 1)
    with psycopg.connect(dsn, autocommit=True) as server:
        switch_off(server, "audit_seals", "audit_events")
        found = server.execute("SELECT batch_no, seal_text FROM audit_seals ORDER BY batch_no").fetchall()
        before = b""
        for batch, text in found:
            parsed, before_this, before = seal.parse_seal(text.encode()), before, text.encode()
            if parsed.first <= activated:
                continue
            facts = {"key": key.key_id, "alg": "ed25519", "prev_seal": seal.seal_hash(before_this)}
            before = seal.seal_text(**parsed._asdict() | facts)
            signature = base64.b64encode(LOCAL.sign(before)).decode()
            server.execute(
                "UPDATE audit_seals SET seal_text = %s, signature = %s, key_id = %s WHERE batch_no = %s",
                (before.decode(), signature, key.key_id, batch),
            )
            server.execute("UPDATE audit_events SET signature = %s WHERE batch_no = %s", (signature, batch))
        switch_on(server, "audit_seals", "audit_events")


def codes(verdict: Verdict) -> list[str]:
    return [finding.code for finding in verdict.findings]


async def test_the_log_and_its_archive_are_right(delegated: Delegated, database: Database) -> None:
    assert codes(verify(database("memory_app"), delegated.data)) == []
    whole = verify_archive(local_segments(delegated.folder, delegated.root.origin), delegated.root, pinned=True)
    assert (codes(whole), whole.counts.delegated_keys) == ([], 1)


async def test_a_segment_alone_takes_the_delegation_from_the_one_that_holds_it(delegated: Delegated) -> None:
    root, sample = delegated.root, delegated.segment(delegated.last)
    there = {held.folder: held for held in local_segments(delegated.folder, root.origin)}

    def alone(*earlier: KeyEntry, by: TrustRoot = root) -> set[str]:
        first = delegated.last.first
        return set(codes(verify_archive([there[sample]], by, pinned=True, first=first, earlier=earlier)))

    assert alone() == {"KEY_UNKNOWN"}
    (known,), problems = key_entries([there[delegated.segment(delegated.carrier)]], root)
    assert (known.seq, known.type, problems) == (delegated.activated, "audit.key.activated", [])
    assert alone(known) == set()
    # It counts for what the delegate signed, from where it stands on, and by a trust root that has the delegate.
    assert alone(known._replace(seq=delegated.last.first)) == {"KEY_UNKNOWN"}
    wider = json.loads(known.payload) | {"from_seq": known.seq + 2}
    assert alone(known._replace(payload=canonical.dumps(wider))) == {"KEY_UNKNOWN"}
    others = tuple(key for key in root.keys if key.purpose != "delegate")
    assert alone(known, by=replace(root, keys=others)) == {"KEY_UNKNOWN"}


async def run_drill(
    delegated: Delegated, into: str, between: Callable[[], None] = lambda: None
) -> tuple[Report, Report]:
    stores = delegated.memory
    dsn = stores.postgres.dsn

    async def begin(run: Run) -> None:
        await drill.start(run, stores.archive, delegated.root, delegated.last.first, dsn)

    started = await operate(stores, drill.START, {}, begin, lock=drill.LOCK)
    found = await asyncio.to_thread(drill.newest, dsn)
    between()

    async def end(run: Run) -> None:
        await drill.finish(run, stores.archive, delegated.root, found, into, dsn)

    return started, await operate(stores, drill.FINISH, {"drill": str(found.id)}, end, lock=drill.LOCK)


async def test_the_drill_fetches_the_delegation_too(delegated: Delegated, other: Database) -> None:
    started, done = await run_drill(delegated, other("memory_owner"))
    assert started.facts["keysFrom"] == [delegated.segment(delegated.carrier).name]
    assert len(started.facts["objects"]) == 2 * 5  # of both segments
    assert (done.exit, done.facts["keysFrom"]) == (0, started.facts["keysFrom"]), done.to_json()
    assert done.facts["entries"] == delegated.last.last - delegated.last.first + 1


async def test_a_delegation_that_was_changed_is_named(delegated: Delegated, other: Database) -> None:
    def harm() -> None:
        path = delegated.segment(delegated.carrier) / PAYLOADS
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1] + b"?")

    _, done = await run_drill(delegated, other("memory_owner"), harm)
    found = [finding.id for finding in done.findings]
    assert (done.exit, found[0], set(found[1:])) == (1, "audit.archive-malformed", {"audit.key-unknown"})


async def test_segments_behind_a_fault_keep_the_delegation_from_before_it(delegated: Delegated, tmp_path: Path) -> None:
    copy = shutil.copytree(delegated.folder, tmp_path / "copy" / "segments")
    between = next(one for one in delegated.written if one.first > delegated.carrier.last)
    path = copy / delegated.segment(between).name / PAYLOADS
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    verdict = verify_archive(local_segments(copy, delegated.root.origin), delegated.root, pinned=True)
    assert codes(verdict) == ["ARCHIVE_MALFORMED"]
