"""The archive: what a run writes, what is left of one that was cut off, whose keys open what, and the way back."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from memory_layer import config
from memory_layer.audit.archive import local_segments, verify_archive
from memory_layer.audit.report import render
from memory_layer.audit.segment import MANIFEST, PAYLOADS, parse_line
from memory_layer.audit.trust_root import TrustRoot, load
from memory_layer.config import Settings
from memory_layer.errors import NotYetPublished, ObjectStoreUnavailable, PolicyRefused, SignerUnavailable, UsageError
from memory_layer.ops import runs
from memory_layer.ops.archive import job, read, write
from memory_layer.ops.archive.data_keys import DataKeys, WrappingKey, open_wrapping_key, read_keys
from memory_layer.ops.archive.replay import replay
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.installation import Installation
from memory_layer.stores.protocols import Lock, ObjectStore, StoredObject
from tests.support import vault_server
from tests.support.databases import new_database
from tests.support.key_services import SECRETS, vault_settings
from tests.support.real_archive import archive_all, archive_small
from tests.support.s3_server import REGION, S3Server
from tests.support.service import create, delete, patch, rows, running_memory, verify
from tests.support.vault_server import VaultServer

Database = Callable[[str], str]


@dataclasses.dataclass
class Place:
    memory: Installation
    data: Path
    dsn: str  # of a role that sees everything
    app: str

    @property
    def root(self) -> TrustRoot:
        return load((self.data / "trust-root.json").read_bytes())

    @property
    def folder(self) -> Path:
        return self.data / "archive" / write.prefix_of(self.root.origin)

    def judge(self, **how: Any) -> Any:
        return verify_archive(local_segments(self.folder, self.root.origin), self.root, pinned=True, **how)

    async def fill(self, count: int, tenant: str = "ann") -> None:
        """In batches of four."""
        for first in range(0, count, 4):
            some = range(first, min(first + 4, count))
            await asyncio.gather(
                *(create(self.memory, tenant, content=f"secret {n}", subjects=[f"s{n % 3}"][: n % 2]) for n in some)
            )

    async def opened(self) -> Any:
        return await read_keys(
            self.app, open_wrapping_key(self.memory.settings, self.data, make=False), self.root.origin
        )


@pytest.fixture
async def place(database: Database, tmp_path: Path) -> AsyncIterator[Place]:
    data = tmp_path / "installation"
    async with running_memory(database("memory_app"), data) as memory:
        yield Place(memory, data, database("postgres"), database("memory_app"))


async def test_what_a_run_writes(place: Place) -> None:
    await place.fill(30)
    written = await archive_all(place.memory, entries=10)
    assert len(written) >= 2
    assert [w.number for w in written] == list(range(len(written)))
    verdict = place.judge()
    assert verdict.findings == (), render(verdict)
    stored = rows(
        place.dsn,
        "SELECT first_seq, last_seq, manifest_sha256, audit_id IS NOT NULL FROM archive_segments ORDER BY number",
    )
    assert stored == [(w.first, w.last, w.sha256, True) for w in written]
    told = rows(place.dsn, "SELECT count(*) FROM audit_events WHERE event_type = 'audit.archived'")
    assert told == [(len(written),)]
    store = place.memory.archive
    for w in written:
        state = await store.stat(w.key, w.version)
        assert state.lock is not None
        assert (state.lock.mode, (state.lock.until - state.lock.until.now(state.lock.until.tzinfo)).days) == (
            "COMPLIANCE",
            365,
        )
    assert verify(place.dsn, place.data).findings == ()


async def test_what_is_archived_is_not_archived_again(place: Place) -> None:
    await place.fill(5)
    assert len(await archive_all(place.memory)) == 1
    # Its own entry is what the next one begins with, after the one that says who writes it.
    (again,) = await archive_all(place.memory)
    assert again.first == again.last - 1
    assert await archive_small(place.memory, rest=True) == []
    assert await archive_small(place.memory) == []
    assert place.judge().findings == ()


async def test_nothing_is_archived_that_no_checkpoint_covers(place: Place) -> None:
    await place.fill(3)
    assert await archive_small(place.memory, rest=True) == []
    with pytest.raises(NotYetPublished):
        await archive_small(place.memory, rest=True, until=2)
    await publish_once(place.memory)
    (written,) = await archive_small(place.memory, rest=True, until=2)
    assert (written.first, written.last) == (0, 2)


async def test_changed_rows_are_not_archived(place: Place) -> None:
    await place.fill(8)
    await publish_once(place.memory)
    with psycopg.connect(place.dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE audit_events DISABLE TRIGGER ALL")
        connection.execute(
            "UPDATE audit_events SET entry = convert_to(replace(convert_from(entry, 'UTF8'), '\"jwt\"', '\"mtls\"'), 'UTF8') WHERE seq = 1"
        )
    with pytest.raises(write.ArchiveDiffers, match="do not lead to the root"):
        await archive_small(place.memory, rest=True)
    assert not place.folder.exists()


# --- a run that is cut off


class Cut(Exception):
    """The process ends here."""


@dataclasses.dataclass
class Cutting:
    """The store, which takes so many objects and then is gone. ``lost``: the last one was written before."""

    store: ObjectStore
    left: int
    lost: bool

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def put_named(self, key: str, chunks: AsyncIterator[bytes], *, lock: Lock | None = None) -> StoredObject:
        self.left -= 1
        if self.left < 0:
            if self.lost:
                await self.store.put_named(key, chunks, lock=lock)
            raise Cut
        return await self.store.put_named(key, chunks, lock=lock)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("puts", range(6))
async def test_a_run_that_is_cut_off_is_finished_by_the_next(place: Place, puts: int, lost: bool) -> None:
    await place.fill(12)
    await publish_once(place.memory)
    cutting = Cutting(place.memory.archive, puts, lost)
    with pytest.raises(Cut):
        await archive_small(place.memory, entries=6, store=cutting, rest=True)
    if place.folder.exists() and list(place.folder.rglob(MANIFEST)):
        assert place.judge().findings == ()
    await place.fill(3, "bob")
    written = await archive_all(place.memory, entries=6)
    assert written[0].first == (0 if puts < 5 else written[0].first)
    verdict = place.judge()
    assert verdict.findings == (), render(verdict)
    assert verdict.counts.first == 0
    # As if it had never been cut off: each range once, and one entry for each.
    keys = [held.name for held in local_segments(place.folder, place.root.origin)]
    assert len(keys) == len({key[:31] for key in keys})
    counted = rows(place.dsn, "SELECT count(*), count(DISTINCT audit_id) FROM archive_segments")
    assert counted == [(len(keys), len(keys))]


async def test_what_an_older_version_left_half_done_is_done_anew(place: Place) -> None:
    await place.fill(6)
    await publish_once(place.memory)
    with pytest.raises(Cut):
        await archive_small(place.memory, store=Cutting(place.memory.archive, 2, False), rest=True)
    # Its bytes would differ now: the person whom a payload concerns was erased.
    with psycopg.connect(place.dsn, autocommit=True) as connection:
        connection.execute(
            "UPDATE subjects SET wrapped_key = NULL, key_id = NULL, erased_at = now() WHERE subject = 's1'"
        )
    written = await archive_small(place.memory, rest=True)
    assert written[0].first == 0
    assert place.judge().findings == ()
    assert written[0].withheld > 0


# --- whose keys open what


async def test_payloads_are_opened_by_the_keys_of_all_whom_they_concern(place: Place) -> None:
    one = await create(place.memory, "ann", content="of two", subjects=["x", "y"])
    await create(place.memory, "ann", content="of nobody")
    await create(place.memory, "bob", content="of another tenant", subjects=["x"])
    await patch(place.memory, one, content="changed")
    await delete(place.memory, one)
    await archive_all(place.memory)
    everything = place.judge(opened=await place.opened())
    assert (everything.findings, everything.counts.payloads_missing) == ((), 0)
    assert everything.counts.payloads_matched == everything.counts.entries
    held = rows(place.dsn, "SELECT tenant, subject FROM subjects WHERE wrapped_key IS NOT NULL ORDER BY 1, 2")
    assert held == [
        ("ann", "ann"),
        ("ann", "x"),
        ("ann", "y"),
        ("bob", "x"),
    ]  # a node without subjects concerns its owner
    # Erasure of one of two ends all that concerns them both, and nothing else.
    with psycopg.connect(place.dsn, autocommit=True) as connection:
        connection.execute(
            "UPDATE subjects SET wrapped_key = NULL, erased_at = now() WHERE tenant = 'ann' AND subject = 'y'"
        )
    after = place.judge(opened=await place.opened())
    assert after.findings == ()
    assert after.counts.payloads_matched == everything.counts.entries - 3
    assert any("3 are encrypted" in line for line in after.not_checked)


async def test_a_payload_concerns_those_who_were_subjects_then(place: Place) -> None:
    node = await create(place.memory, "ann", content="of x", subjects=["x"])
    await patch(place.memory, node, content="still of x")
    await patch(place.memory, node, owner="bob", subjects=["y"])
    await patch(place.memory, node, content="of y")
    await archive_all(place.memory)
    matched = place.judge(opened=await place.opened()).counts.payloads_matched
    for gone, left_out in (("x", 2), ("y", 4)):
        with psycopg.connect(place.dsn, autocommit=True) as connection:
            connection.execute(
                "UPDATE subjects SET wrapped_key = NULL, erased_at = now() WHERE tenant = 'ann' AND subject = %s",
                [gone],
            )
        assert place.judge(opened=await place.opened()).counts.payloads_matched == matched - left_out
    # What is written from now on concerns neither of them.
    await patch(place.memory, node, subjects=["z"], content="of z")
    (written,) = await archive_all(place.memory)
    assert written.withheld == 0


async def test_data_keys_are_wrapped_and_bound_to_their_row(place: Place) -> None:
    await create(place.memory, "ann", subjects=["x"])
    await create(place.memory, "ann", subjects=["y"])
    await archive_all(place.memory)
    assert (place.data / "keys" / "data.key").stat().st_mode & 0o777 == 0o600
    with psycopg.connect(place.dsn, autocommit=True) as connection:
        connection.execute(
            "UPDATE subjects SET wrapped_key = (SELECT wrapped_key FROM subjects WHERE subject = 'x') WHERE subject = 'y'"
        )
    with pytest.raises(PolicyRefused, match="cannot be unwrapped"):
        await place.opened()


async def test_each_line_names_its_keys_alone(place: Place) -> None:
    await create(place.memory, "ann", content="who am I", subjects=["jane"])
    await archive_all(place.memory)
    (held,) = local_segments(place.folder, place.root.origin)
    text = gzip.decompress((held.folder / PAYLOADS).read_bytes())
    assert b"jane" not in text
    assert b"who am I" not in text
    lines = [parse_line(line) for line in text.splitlines()]
    assert None not in lines


# --- the way back


@pytest.fixture
def other(cluster: Any) -> Any:
    with new_database(cluster) as made:
        yield made


async def test_replay_brings_every_byte_back(place: Place, other: Database) -> None:
    await place.fill(30)
    await archive_all(place.memory, entries=10)
    segments, opened = local_segments(place.folder, place.root.origin), await place.opened()
    facts: dict[str, Any] = {"pinned": True, "source": place.app, "opened": opened}
    dry = await asyncio.to_thread(replay, lambda: segments, place.root, other("memory_owner"), dry_run=True, **facts)
    assert (dry.verdict.findings, dry.log, dry.entries) == ((), None, 0)
    assert rows(other("postgres"), "SELECT count(*) FROM audit_logs") == [(0,)]
    done = await asyncio.to_thread(replay, lambda: segments, place.root, other("memory_owner"), **facts)
    assert done.verdict.findings == (), render(done.verdict)
    assert done.log == -1
    last = done.verdict.counts.last
    columns = "seq, id, batch_no, tenant, memory_node_id, artifact_id, event_type, manifest_signature_id, created_at, entry, hash, prev_hash, signature"
    query = f"SELECT {columns} FROM audit_events WHERE seq <= {last} ORDER BY seq"
    assert rows(other("postgres"), query) == rows(place.dsn, query)
    query = f"SELECT seq, tenant, salt, payload FROM audit_payloads WHERE seq <= {last} ORDER BY seq"
    assert rows(other("postgres"), query) == rows(place.dsn, query)
    query = f"SELECT batch_no, seal_text, signature, head, key_id FROM audit_seals WHERE last_seq <= {last} ORDER BY batch_no"
    assert rows(other("postgres"), query) == rows(place.dsn, query)
    assert rows(other("postgres"), "SELECT imported_at IS NOT NULL FROM audit_logs") == [(True,)]
    # The copy verifies as the log does, and again changes nothing.
    assert verify(other("postgres"), place.data, imported=True).findings == ()
    (misplaced, *_) = verify(other("postgres"), place.data).findings  # it is not the log that is written to
    assert (misplaced.code, misplaced.exit_code) == ("FOREIGN_LOG", 40)
    again = await asyncio.to_thread(replay, lambda: segments, place.root, other("memory_owner"), **facts)
    assert (again.verdict.findings, again.entries, again.skipped) == ((), 0, done.entries)


async def test_nothing_is_appended_to_a_copy(place: Place, other: Database, tmp_path: Path) -> None:
    await place.fill(4)
    await archive_all(place.memory)
    segments = local_segments(place.folder, place.root.origin)
    opened = await place.opened()
    await asyncio.to_thread(replay, lambda: segments, place.root, other("memory_owner"), pinned=True, opened=opened)
    with psycopg.connect(other("memory_app")) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(
            "INSERT INTO audit_seals SELECT log, batch_no + 1, last_seq + 1, last_seq + 1, head, seal_text, signature, key_id, algorithm,"
            " system_identifier, timeline, created_at FROM audit_seals ORDER BY batch_no DESC LIMIT 1"
        )
    # A product on that database writes a log of its own beside it.
    async with running_memory(other("memory_app"), tmp_path / "staging") as memory:
        await create(memory)
        assert rows(other("postgres"), "SELECT log FROM audit_logs ORDER BY log") == [(-1,), (0,)]
    own, copied = load((tmp_path / "staging" / "trust-root.json").read_bytes()).origin, place.root.origin
    for data, imported, beside in ((tmp_path / "staging", False, copied), (place.data, True, own)):
        judged = verify(other("postgres"), data, imported=imported)
        assert [(finding.code, beside in finding.found) for finding in judged.findings] == [("FOREIGN_LOG", True)]
        known = verify(other("postgres"), data, imported=imported, others=[beside])
        assert known.findings == ()
        assert any(beside in line for line in known.not_checked)


async def test_replay_is_refused_where_it_must_not_go(place: Place, other: Database, tmp_path: Path) -> None:
    await place.fill(4)
    await archive_all(place.memory)
    segments = local_segments(place.folder, place.root.origin)
    with pytest.raises(PolicyRefused, match=r"its own source|itself"):
        replay(lambda: segments, place.root, place.app, pinned=True)
    with pytest.raises(PolicyRefused, match="its own source"):
        replay(lambda: segments, place.root, other("memory_owner"), pinned=True, source=other("memory_owner"))
    with psycopg.connect(other("postgres")) as connection:
        connection.execute("INSERT INTO audit_logs VALUES (0, 'x.example/audit/prod/s0/e1', 1, %s)", ("0" * 64,))
    with pytest.raises(PolicyRefused, match="production"):
        replay(lambda: segments, place.root, other("memory_app"), pinned=True)


async def test_nothing_is_replayed_of_an_archive_that_was_changed(place: Place, other: Database) -> None:
    await place.fill(12)
    await archive_all(place.memory, entries=5)
    segments = local_segments(place.folder, place.root.origin)
    path = segments[-1].folder / MANIFEST
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b'"number":', b'"number":1', 1))
    done = replay(lambda: segments, place.root, other("memory_app"), pinned=True)
    assert [finding.code for finding in done.verdict.findings] == ["MANIFEST_SIGNATURE_INVALID"]
    assert rows(
        other("postgres"), "SELECT (SELECT count(*) FROM audit_logs) + (SELECT count(*) FROM audit_events)"
    ) == [(0,)]


# --- what the store says


async def in_store(place: Place) -> Any:
    store = place.memory.archive
    found = await read.find_segments(store, place.root.origin)
    return await read.in_thread(store, found, lambda segments: verify_archive(segments(), place.root, pinned=True))


async def test_the_store_is_read_by_version_and_its_locks_are_looked_at(place: Place) -> None:
    await place.fill(12)
    await archive_all(place.memory, entries=5)
    assert (await in_store(place)).findings == ()
    for state in (place.data / "archive").rglob("*"):
        if (
            state.is_file()
            and b'"COMPLIANCE"' in state.read_bytes()
            and MANIFEST not in str(state)
            and "entries" in str(state)
        ):
            state.chmod(0o600)
            state.write_bytes(state.read_bytes().replace(b'"COMPLIANCE"', b'"GOVERNANCE"'))
            break
    verdict = await in_store(place)
    assert [(finding.code, finding.exit_code) for finding in verdict.findings] == [("WORM_POLICY_VIOLATION", 50)], (
        render(verdict)
    )


async def test_an_object_gone_from_the_store_is_named(place: Place) -> None:
    await place.fill(4)
    await archive_all(place.memory)
    (held,) = local_segments(place.folder, place.root.origin)
    held.folder.chmod(0o700)
    (held.folder / PAYLOADS).unlink()
    assert [finding.code for finding in (await in_store(place)).findings] == ["ARCHIVE_TRUNCATED"]


# --- what the worker does


async def test_the_worker_archives_what_fills_a_segment_and_each_night_the_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.fill(4)
    await publish_once(place.memory)
    await job.archive_full(place.memory)
    assert rows(place.dsn, "SELECT count(*) FROM ops_runs") == [(0,)]
    points = [path for path in (place.folder / "checkpoints").rglob("*") if path.is_file()]
    assert len(points) >= 1
    await job.archive_rest(place.memory)
    ((run_id,),) = rows(place.dsn, "SELECT id FROM ops_runs")
    found = runs.find(place.dsn, run_id)
    assert (found["verb"], found["verdict"], found["evidence"]) == ("audit-archive", "ok", "ok")
    assert found["report"]["facts"]["entries"] == 4
    assert place.judge().findings == ()


async def test_an_archive_that_does_not_keep_what_it_was_given_is_noticed(place: Place) -> None:
    await place.fill(4)
    await publish_once(place.memory)

    class Forgetful(Cutting):
        async def put_named(self, key: str, chunks: AsyncIterator[bytes], *, lock: Lock | None = None) -> StoredObject:
            return await self.store.put_named(key, chunks)

    with pytest.raises(ObjectStoreUnavailable, match="lock None"):
        await archive_small(place.memory, store=Forgetful(place.memory.archive, 0, False), rest=True)
    assert not list(place.folder.rglob(MANIFEST))


async def test_one_archiver_at_a_time(place: Place) -> None:
    await place.fill(4)
    await publish_once(place.memory)
    with psycopg.connect(place.app, autocommit=True) as other_run:
        other_run.execute("SELECT pg_advisory_lock(hashtextextended('memory-layer verb archive', 0))")
        await job.archive_rest(place.memory)
        assert rows(place.dsn, "SELECT count(*) FROM archive_segments") == [(0,)]
        assert rows(place.dsn, "SELECT verdict FROM ops_runs") == [("locked",)]
    await job.archive_rest(place.memory)
    assert rows(place.dsn, "SELECT count(*) FROM archive_segments") == [(1,)]


async def test_kms_holds_the_key_that_wraps_the_others(
    place: Place, moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto speaks KMS too."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto_s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto_s3.secret)
    kms = boto3.client("kms", endpoint_url=moto_s3.endpoint, region_name=REGION)
    keys = [kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(2)]

    def settings(key: str) -> Settings:
        return config.load({}, data_key_id=key, kms_endpoint=moto_s3.endpoint, kms_region=REGION)

    made = open_wrapping_key(settings(keys[0]), place.data, make=True)
    assert open_wrapping_key(settings(keys[0]), place.data, make=True) == made
    kept = place.data / "keys" / "data.key.kms"
    assert made.key not in kept.read_bytes()
    assert not (place.data / "keys" / "data.key").exists()
    with pytest.raises(SignerUnavailable, match="DATA_KEY_ID"):
        open_wrapping_key(settings(keys[1]), place.data, make=False)
    with pytest.raises(UsageError, match="cannot be read"):
        open_wrapping_key(settings(keys[0]), place.data / "elsewhere", make=False)
    await _archived_and_read(place, made)


async def test_vault_holds_the_key_that_wraps_the_others(place: Place, vault: VaultServer) -> None:
    vault.make("data", "aes256-gcm96")

    def settings(name: str = "vault:data", **more: object) -> Settings:
        return vault_settings(vault, data_key_id=name, **more)

    made = open_wrapping_key(settings(), place.data, make=True)
    key = vault.mounts["transit"]["data"]
    key.versions.append(vault_server.generate(key.type))  # a rotation: what the old version encrypted it still opens
    assert open_wrapping_key(settings(), place.data, make=True) == made
    kept = place.data / "keys" / "data.key.vault"
    assert kept.read_bytes().startswith(b"vault:v1:")
    assert not (place.data / "keys" / "data.key").exists()
    await _archived_and_read(place, made)
    approle = {"vault_token": "", "vault_role_id": vault_server.ROLE_ID, "vault_secret_id": vault_server.SECRET_ID}
    assert open_wrapping_key(settings(**approle), place.data, make=False) == made
    assert list(vault.tokens) == [vault_server.ROOT_TOKEN]  # what was logged in for is given back


async def test_what_vault_refuses_is_reported_and_nothing_is_kept(place: Place, vault: VaultServer) -> None:
    def opened(name: str, make: bool = True, **more: object) -> str:
        with pytest.raises((UsageError, SignerUnavailable, PolicyRefused)) as caught:
            open_wrapping_key(vault_settings(vault, data_key_id=name, **more), place.data, make=make)
        check_words(str(caught.value))
        return f"{type(caught.value).__name__}: {caught.value}"

    vault.make("data", "aes256-gcm96")
    vault.make("seals", "ed25519")
    vault.make("loose", "aes256-gcm96", exportable=True)
    assert opened("vault:none").startswith(
        "UsageError: DATA_KEY_ID is vault:none, and Vault's transit engine at transit/ has no such key"
    )
    assert list(vault.mounts["transit"]) == ["data", "seals", "loose"]  # none was made by asking
    assert "does not encrypt" in opened("vault:seals")
    assert opened("vault:loose", require_kms=True).startswith(
        "PolicyRefused: The Vault key transit/loose has exportable set"
    )
    vault.denied.add("transit/encrypt")
    assert "update on transit/encrypt/data" in opened("vault:data")
    vault.denied.clear()
    assert "permission denied" in opened("vault:data", vault_token="hvs.another")
    assert "VAULT_ADDR" in opened("vault:data", vault_addr="")
    vault.sealed = True
    assert opened("vault:data").startswith(
        "SignerUnavailable: Vault did not accept the login with DATA_KEY_ID vault:data: it is sealed"
    )
    vault.sealed = False
    assert not (place.data / "keys" / "data.key.vault").exists()
    open_wrapping_key(vault_settings(vault, data_key_id="vault:data"), place.data, make=True)
    kept = place.data / "keys" / "data.key.vault"
    kept.chmod(0o600)
    kept.write_bytes(kept.read_bytes()[:-8] + b"AAAAAAA=")
    assert "did not decrypt the data key" in opened("vault:data", make=False)
    with pytest.raises(UsageError):
        config.load({}, data_key_id="vault:no/key")


def check_words(text: str) -> None:
    assert not [secret for secret in SECRETS if secret in text], text


async def _archived_and_read(place: Place, made: WrappingKey) -> None:
    """Payloads that go into the archive under this key are read from there with it."""
    await place.fill(4)
    await publish_once(place.memory)
    await archive_small(place.memory, payload_keys=DataKeys(place.memory.postgres, made), rest=True)
    opened = await read_keys(place.app, made, place.root.origin)
    assert place.judge(opened=opened).counts.payloads_matched == 4
