"""Rotation of the key that seals the log: what it leaves in the log and in the trust root, wherever it is cut off."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memory_layer import config
from memory_layer.audit import seal, trust_root
from memory_layer.audit.verdict import Verdict
from memory_layer.config import Settings
from memory_layer.errors import LockHeld, PolicyRefused, SignerUnavailable, UsageError
from memory_layer.ops import audit, rotate
from memory_layer.ops.durable_files import ensure_key
from memory_layer.ops.first_start import ensure_keys, start_log
from memory_layer.ops.operate import Run, operate
from memory_layer.service.commit import Committer
from memory_layer.service.installation import Installation, open_installation
from memory_layer.stores.key_ring import KeyRing
from memory_layer.stores.log_guard import LogGuard
from memory_layer.stores.log_writer import LogWriter
from memory_layer.stores.signers.local import open_local_signer
from tests.support import vault_server
from tests.support.key_services import kms_settings, vault_settings
from tests.support.kms_server import KmsServer
from tests.support.runs import installed, perform
from tests.support.service import create, rows, running_memory, verify
from tests.support.triggers import switch_off, switch_on, switched_off
from tests.support.vault_server import VaultServer

Database = Callable[[str], str]
LOCAL = config.load({}, embeddings_provider="none")
STEPS = ["made", "announced", "activated", "closed", "retired", "put away"]
UNANCHORED, POLICY = 10, 50


@pytest.fixture
def folder(database: Database, tmp_path: Path) -> Path:
    """The data folder of an installation that was started once and has written two entries."""
    asyncio.run(write(database("memory_app"), tmp_path, 2))
    return tmp_path


async def write(dsn: str, folder: Path, count: int = 1) -> None:
    """A server that starts, writes and stops."""
    async with running_memory(dsn, folder) as memory:
        for _ in range(count):
            await create(memory)


async def rotated(dsn: str, folder: Path, settings: Settings = LOCAL, until: int = 99, **options: Any) -> list[str]:
    """Rotate, or only the first so many steps of it; what it said."""
    said: list[str] = []
    if not until:
        return said
    async with (
        open_installation(msgspec.structs.replace(settings, database_url=dsn), folder) as installation,
        contextlib.aclosing(rotate.steps(installation, **options)) as steps,
    ):
        async for line in steps:
            said.append(line)
            if len(said) == until:
                break
    return said


def root_of(folder: Path, name: str = "trust-root.json") -> trust_root.TrustRoot:
    return trust_root.load((folder / name).read_bytes())


def judge(database: Database, root: trust_root.TrustRoot) -> Verdict:
    return audit.verify_live(database("memory_app"), root, pinned=True)


def seal_ranges(root: trust_root.TrustRoot) -> list[tuple[int, int | None]]:
    return [(key.from_seq, key.to_seq) for key in root.keys if key.purpose == "seal"]


def key_entries(database: Database) -> list[tuple[int, str, dict[str, Any], str]]:
    """(seq, type, payload, sealed by) of the entries about keys."""
    found = rows(
        database("postgres"),
        "SELECT e.seq, e.event_type, convert_from(p.payload, 'UTF8'), s.key_id FROM audit_events e"
        " JOIN audit_payloads p USING (log, seq) JOIN audit_seals s USING (log, batch_no)"
        " WHERE e.event_type LIKE 'audit.key.%%' ORDER BY e.seq",
    )
    return [(seq, type_, json.loads(payload), key) for seq, type_, payload, key in found]


def sealed_by(database: Database) -> str:
    return str(rows(database("postgres"), "SELECT key_id FROM audit_seals ORDER BY batch_no DESC LIMIT 1")[0][0])


def local_ids(folder: Path) -> list[str]:
    return sorted(open_local_signer(path).key_id for path in (folder / "keys").glob("seal*.pem"))


# --- what it leaves


def test_the_log_changes_its_key_and_history_stays(database: Database, folder: Path) -> None:
    before = root_of(folder)
    (old,) = local_ids(folder)
    said = asyncio.run(rotated(database("memory_app"), folder))
    assert len(said) == len(STEPS)
    asyncio.run(write(database("memory_app"), folder, 2))

    (new,) = local_ids(folder)
    assert sealed_by(database) == new != old
    activated, retired = key_entries(database)
    at = activated[0]
    assert (activated[1], activated[3], activated[2]["key_id"], activated[2]["from_seq"]) == (
        "audit.key.activated",
        old,
        new,
        at + 1,
    )
    assert (retired[1], retired[3], retired[2]["key_id"], retired[2]["to_seq"]) == ("audit.key.retired", new, old, at)

    root = root_of(folder)
    assert (root.version, seal_ranges(root)) == (3, [(0, at), (at + 1, None)])
    assert [key for key in root.keys if key.purpose != "seal"] == [key for key in before.keys if key.purpose != "seal"]
    assert root_of(folder, "trust-root.v1.json") == before
    assert seal_ranges(root_of(folder, "trust-root.v2.json")) == [
        (0, None),
        (at, None),
    ]  # before it the operator was introduced
    verdict = verify(database("memory_app"), folder)
    assert (verdict.exit_code, verdict.findings) == (UNANCHORED, ())


def test_an_old_trust_root_knows_the_time_before(database: Database, folder: Path) -> None:
    before = root_of(folder)
    asyncio.run(rotated(database("memory_app"), folder))
    asyncio.run(write(database("memory_app"), folder))
    (activated, _) = key_entries(database)
    verdict = judge(database, before)
    assert verdict.exit_code == POLICY
    assert {finding.code for finding in verdict.findings} == {"KEY_UNKNOWN"}
    ((batch,),) = rows(database("postgres"), "SELECT batch_no FROM audit_seals WHERE last_seq = %s", (activated[0],))
    assert min(finding.batch for finding in verdict.findings if finding.batch is not None) == batch + 1
    assert verdict.counts.seals_valid == batch + 1


def test_the_old_key_is_kept_for_its_owner_alone_or_destroyed(database: Database, folder: Path) -> None:
    (first,) = local_ids(folder)
    asyncio.run(rotated(database("memory_app"), folder))
    kept = folder / "keys" / "retired" / f"seal-{first[:12]}.pem"
    assert (open_local_signer(kept).key_id, stat.S_IMODE(kept.stat().st_mode)) == (first, 0o400)
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    (made,) = (folder / "keys").glob("seal*.pem")
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert made.name == f"seal-{local_ids(folder)[0][:12]}.pem"
    asyncio.run(rotated(database("memory_app"), folder, destroy_old=True))
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    ensure_keys(folder)
    assert len(local_ids(folder)) == 1


async def planned(settings: Settings, folder: Path, dsn: str) -> rotate.Plan:
    async with open_installation(msgspec.structs.replace(settings, database_url=dsn), folder) as installation:
        return await rotate.plan(installation)


def test_a_plan_changes_nothing(database: Database, folder: Path) -> None:
    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before, entries = everything(), rows(database("postgres"), "SELECT count(*) FROM audit_events")
    found = asyncio.run(planned(LOCAL, folder, database("memory_app")))
    assert ([found.old], found.new, found.activated, len(found.todo)) == (local_ids(folder), None, False, len(STEPS))
    assert everything() == before
    assert rows(database("postgres"), "SELECT count(*) FROM audit_events") == entries


# --- cut off


@pytest.mark.parametrize("done", range(len(STEPS)), ids=["nothing", *STEPS[:-1]])
def test_cut_off_after_a_step_it_goes_on_where_it_ended(database: Database, folder: Path, done: int) -> None:
    dsn = database("memory_app")
    asyncio.run(rotated(dsn, folder, until=done))
    # Whatever was done so far, servers start on it and write, and the data folder's own trust root knows their seals.
    asyncio.run(write(dsn, folder, 2))
    assert (verify(dsn, folder).exit_code, verify(dsn, folder).findings) == (UNANCHORED, ())
    said = asyncio.run(rotated(dsn, folder))
    assert len(said) == len(STEPS) - done, said
    asyncio.run(write(dsn, folder))

    assert [entry[1] for entry in key_entries(database)] == ["audit.key.activated", "audit.key.retired"]
    at = key_entries(database)[0][0]
    assert (root_of(folder).version, seal_ranges(root_of(folder))) == (3, [(0, at), (at + 1, None)])
    assert local_ids(folder) == [sealed_by(database)]
    assert (verify(dsn, folder).exit_code, verify(dsn, folder).findings) == (UNANCHORED, ())


def test_a_key_that_was_announced_and_lost_is_announced_no_more(database: Database, folder: Path) -> None:
    dsn = database("memory_app")
    asyncio.run(rotated(dsn, folder, until=2))
    (draft,) = (folder / "keys").glob("seal-*.pem")
    draft.unlink()
    asyncio.run(rotated(dsn, folder))
    at = key_entries(database)[0][0]
    assert seal_ranges(root_of(folder)) == [(0, at), (at + 1, None)]
    assert verify(dsn, folder).exit_code == UNANCHORED


# --- servers that run meanwhile


async def test_servers_follow_without_a_failed_write(database: Database, tmp_path: Path) -> None:
    dsn = database("memory_app")

    async def keep_writing(memory: Installation) -> int:
        written = 0
        while not stop.is_set():
            await create(memory)  # raises when it is refused
            written += 1
        return written

    stop = asyncio.Event()
    async with running_memory(dsn, tmp_path) as one, running_memory(dsn, tmp_path) as two:
        writers = [asyncio.create_task(keep_writing(memory)) for memory in (one, one, two, two)]
        for _ in range(3):  # faster than a ring of keys may be opened again
            await rotated(dsn, tmp_path)
        stop.set()
        written = sum(await asyncio.gather(*writers))
    ((stored,),) = rows(database("postgres"), "SELECT count(*) FROM memory_nodes")
    assert written == stored > 0
    assert len(seal_ranges(root_of(tmp_path))) == 4
    assert verify(dsn, tmp_path).exit_code == UNANCHORED


async def test_a_server_that_cannot_get_the_key_refuses_and_says_why(database: Database, folder: Path) -> None:
    dsn = database("memory_app")
    async with running_memory(dsn, folder) as memory:
        signer = memory.keys.newest

        async def reopen() -> list[Any]:
            raise UsageError("there is no such key here")

        lonely = Committer(LogWriter(dsn, 2.0, LogGuard(memory.trust_root)), KeyRing([signer], reopen))
        try:
            await rotated(dsn, folder)
            with pytest.raises(SignerUnavailable, match="this server has not got it"):
                await create(memory.with_parts(committer=lonely))
            await create(memory)
        finally:
            await lonely.close()
    assert verify(dsn, folder).exit_code == UNANCHORED


# --- forgeries


def reseal(database: Database, key: Path) -> None:
    """Seal the newest batch again with another key, as its thief with the run of the database would."""
    signer = open_local_signer(key)
    with psycopg.connect(database("postgres"), autocommit=True) as server:
        switch_off(server, "audit_seals", "audit_events")
        ((batch, text),) = server.execute(
            "SELECT batch_no, seal_text FROM audit_seals ORDER BY batch_no DESC LIMIT 1"
        ).fetchall()
        found = seal.parse_seal(text.encode())
        forged = seal.seal_text(**found._asdict() | {"key": signer.key_id, "alg": signer.algorithm})
        signature = base64.b64encode(asyncio.run(signer.sign(forged))).decode()
        server.execute(
            "UPDATE audit_seals SET seal_text = %s, signature = %s, key_id = %s WHERE batch_no = %s",
            (forged.decode(), signature, signer.key_id, batch),
        )
        server.execute("UPDATE audit_events SET signature = %s WHERE batch_no = %s", (signature, batch))
        switch_on(server, "audit_seals", "audit_events")


def test_a_seal_by_the_old_key_after_its_time(database: Database, folder: Path) -> None:
    stolen = folder / "stolen.pem"
    shutil.copy(folder / "keys" / "seal.pem", stolen)
    asyncio.run(rotated(database("memory_app"), folder))
    asyncio.run(write(database("memory_app"), folder))
    reseal(database, stolen)
    verdict = verify(database("memory_app"), folder)
    assert ([finding.code for finding in verdict.findings], verdict.exit_code) == (["KEY_EPOCH_CLOSED"], POLICY)
    # The log's own word is enough: a trust root whose keeper left the old key open comes to the same.
    root = root_of(folder)
    open_ended = replace(root, keys=tuple(replace(key, to_seq=None) for key in root.keys))
    assert [finding.code for finding in judge(database, open_ended).findings] == ["KEY_EPOCH_CLOSED"]


def test_a_seal_by_the_new_key_before_its_time(database: Database, folder: Path) -> None:
    asyncio.run(rotated(database("memory_app"), folder, until=STEPS.index("closed") + 1))
    (new,) = (folder / "keys").glob("seal-*.pem")
    reseal(database, new)  # the newest entry is the activation itself
    verdict = verify(database("memory_app"), folder)
    assert [finding.code for finding in verdict.findings] == ["KEY_NOT_AUTHORISED_FOR_EPOCH"]
    assert verdict.exit_code == POLICY


def test_what_the_database_claims_does_not_get_into_the_trust_root(database: Database, folder: Path) -> None:
    """Whoever may write to the database, and whose key came into the folder, has not got the old key's word for it."""
    ensure_key(folder / "keys" / "seal-planted.pem")
    planted = open_local_signer(folder / "keys" / "seal-planted.pem")
    with psycopg.connect(database("postgres"), autocommit=True) as server, switched_off(server, "audit_keys"):
        server.execute(
            "INSERT INTO audit_keys (log, from_seq, key_id, algorithm, public_key, created_at) VALUES (0, 2, %s, %s, %s, now())",
            (planted.key_id, planted.algorithm, planted.public_key_der),
        )
    before = (folder / "trust-root.json").read_bytes()
    with pytest.raises(PolicyRefused, match="nothing proves it"):
        asyncio.run(rotated(database("memory_app"), folder))
    assert (folder / "trust-root.json").read_bytes() == before


# --- refusals


def test_a_machine_without_the_key(database: Database, folder: Path, tmp_path_factory: Any) -> None:
    dsn, other = database("memory_app"), tmp_path_factory.mktemp("other")
    with pytest.raises(UsageError, match=r"trust-root\.json cannot be read.*--data"):
        asyncio.run(rotated(dsn, other))
    shutil.copy(folder / "trust-root.json", other)
    for _ in range(2):  # without a key, with another
        with pytest.raises(PolicyRefused, match="this machine has not got it"):
            asyncio.run(rotated(dsn, other))
        ensure_keys(other)
    assert not list(other.glob("trust-root.v*"))


def test_another_logs_trust_root(database: Database, folder: Path) -> None:
    root = root_of(folder)
    foreign = trust_root.dump("elsewhere/audit/dev/s0/e1", root.keys)
    (folder / "trust-root.json").write_bytes(foreign)
    with pytest.raises(PolicyRefused, match="is for the log elsewhere"):
        asyncio.run(rotated(database("memory_app"), folder))


def test_a_database_older_than_its_trust_root(database: Database, folder: Path) -> None:
    root = root_of(folder)
    closed = [replace(key, to_seq=0) if key.purpose == "seal" else key for key in root.keys]
    (folder / "trust-root.json").write_bytes(trust_root.dump(root.origin, closed, 2))
    with pytest.raises(PolicyRefused, match="ends the time at entry 0"):
        asyncio.run(rotated(database("memory_app"), folder))


def test_a_database_without_a_log(database: Database, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no log yet"):
        asyncio.run(rotated(database("memory_app"), tmp_path))


def test_a_key_in_a_file_is_none_for_production(database: Database, folder: Path) -> None:
    with pytest.raises(PolicyRefused, match="SERVICE_ENV=prod"):
        asyncio.run(rotated(database("memory_app"), folder, config.load({}, service_env="prod")))


def test_of_two_at_once_one_waits_for_another_time(database: Database, folder: Path) -> None:
    place = installed(LOCAL, folder, database("memory_app"))

    async def inner(run: Run) -> None:
        with pytest.raises(LockHeld):
            await operate(place, "rotate-signing-key", {}, inner, lock=rotate.LOCK)

    perform(place, "rotate-signing-key", {}, inner, lock=rotate.LOCK)


# --- keys that live elsewhere


@contextlib.asynccontextmanager
async def on_kms(dsn: str, folder: Path, settings: Settings) -> AsyncIterator[Installation]:
    plain = {name: getattr(settings, name) for name in ("audit_signer", "kms_endpoint", "audit_kms_key_id")}
    async with running_memory(dsn, folder, **plain) as memory:
        yield memory


async def test_from_a_file_to_kms_within_it_and_back(database: Database, kms: KmsServer, tmp_path: Path) -> None:
    dsn = database("memory_app")
    await write(dsn, tmp_path, 2)
    kms.make(alias="alias/one")
    one, both = kms_settings(kms, "alias/one"), kms_settings(kms, "alias/one,alias/two")
    assert len(await rotated(dsn, tmp_path, one)) == len(STEPS) - 1  # nothing is made
    assert local_ids(tmp_path) == []
    async with on_kms(dsn, tmp_path, one) as memory:
        await create(memory)
    first = sealed_by(database)
    assert first != open_local_signer(next((tmp_path / "keys" / "retired").iterdir())).key_id

    with pytest.raises(UsageError, match="AUDIT_KMS_KEY_ID=<old>,<new>"):
        await rotated(dsn, tmp_path, one)
    kms.make("RSA_2048", alias="alias/two")
    async with on_kms(dsn, tmp_path, both) as memory:  # a server that has both keys goes over by itself
        await create(memory)
        assert sealed_by(database) == first
        await rotated(dsn, tmp_path, both)
        await create(memory)
    assert sealed_by(database) != first
    with pytest.raises(UsageError, match="cannot come back"):
        await rotated(dsn, tmp_path, both, new_key="alias/one")

    back = config.load({}, audit_signer="local", kms_endpoint=kms.url, audit_kms_key_id="alias/two")
    ensure_keys(tmp_path)
    await rotated(dsn, tmp_path, back)
    await write(dsn, tmp_path)
    assert sealed_by(database) in local_ids(tmp_path)
    root = root_of(tmp_path)
    assert [key.algorithm for key in root.keys if key.purpose == "seal"] == [
        "ed25519", "ecdsa-p256-sha256", "rsa-pss-sha256", "ed25519"
    ]  # fmt: skip
    verdict = verify(dsn, tmp_path)
    assert (verdict.exit_code, verdict.findings) == (UNANCHORED, ())


async def test_among_several_kms_keys_one_is_named(database: Database, kms: KmsServer, tmp_path: Path) -> None:
    dsn = database("memory_app")
    for name in ("one", "two", "three"):
        kms.make(alias=f"alias/{name}")
    async with on_kms(dsn, tmp_path, kms_settings(kms, "alias/one")) as memory:
        await create(memory)
    settings = kms_settings(kms, "alias/one,alias/two,alias/three")
    with pytest.raises(UsageError, match=r"alias/two, alias/three.*--new-key"):
        await rotated(dsn, tmp_path, settings)
    with pytest.raises(UsageError, match="none of the keys"):
        await rotated(dsn, tmp_path, settings, new_key="alias/four")
    await rotated(dsn, tmp_path, settings, new_key="alias/three")
    three = kms.keys[kms.aliases["alias/three"]].private.public_key()
    assert sealed_by(database) == seal.key_id(three.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    assert verify(dsn, tmp_path).exit_code == UNANCHORED


async def test_a_service_that_does_not_sign_leaves_what_can_be_finished(
    database: Database, kms: KmsServer, tmp_path: Path
) -> None:
    dsn = database("memory_app")
    await write(dsn, tmp_path)
    kms.make(alias="alias/one")
    settings = kms_settings(kms, "alias/one")
    kms.set_fault("500")
    with pytest.raises(SignerUnavailable):
        await rotated(dsn, tmp_path, settings)  # the activation needs the old key alone
    assert [entry[1] for entry in key_entries(database)] == ["audit.key.activated"]
    assert verify(dsn, tmp_path).exit_code == UNANCHORED
    kms.set_fault(None)
    await rotated(dsn, tmp_path, settings)
    assert [entry[1] for entry in key_entries(database)] == ["audit.key.activated", "audit.key.retired"]
    assert local_ids(tmp_path) == []
    assert verify(dsn, tmp_path).exit_code == UNANCHORED


async def test_vault_goes_to_its_newest_version(database: Database, vault: VaultServer, tmp_path: Path) -> None:
    dsn = database("memory_app")
    key = vault.make()
    settings = vault_settings(vault, embeddings_provider="none")
    ensure_keys(tmp_path)
    await start_log(settings, tmp_path, dsn, database("memory_owner"))
    with pytest.raises(UsageError, match="rotate"):
        await rotated(dsn, tmp_path, settings)
    key.versions.append(vault_server.generate("ed25519"))
    await rotated(dsn, tmp_path, settings)
    assert seal_ranges(root_of(tmp_path)) == [(0, 1), (2, None)]
    assert verify(dsn, tmp_path).exit_code == UNANCHORED
