"""A log that was restored to an earlier point, continued or not: found by what is kept outside the database, and nothing is written."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from memory_layer import config
from memory_layer.audit.checkpoint import parse_checkpoint
from memory_layer.errors import ObjectStoreUnavailable, RollbackDetected
from memory_layer.ops import embedded
from memory_layer.ops.anchors import remember
from memory_layer.ops.archive import job, write
from memory_layer.ops.rollback import examine
from memory_layer.service import rollback
from memory_layer.service.actions.log import Record
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.commit import Change, Committer
from memory_layer.service.installation import Installation, open_installation
from memory_layer.service.principals import known_caller
from memory_layer.stores.log_guard import LogGuard
from memory_layer.stores.log_writer import LogWriter
from memory_layer.stores.logs import read_trust_root
from memory_layer.stores.protocols import ObjectPage
from memory_layer.telemetry import metrics
from tests.support.databases import new_database
from tests.support.real_archive import archive_all
from tests.support.service import caller, create, rows, running_memory, verify

Database = Callable[[str], str]
Copy = Callable[[], Database]


@pytest.fixture
def copy(cluster: embedded.Cluster, database: Database) -> Iterator[Copy]:
    """Call it for a copy of the database as it is now, while nobody is connected: a backup that can be restored."""
    source = psycopg.conninfo.conninfo_to_dict(database("postgres"))["dbname"]
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(new_database(cluster, str(source)))


async def fill(memory: Installation, count: int) -> None:
    for _ in range(count):
        await create(memory, content="x")
    await publish_once(memory)


async def copy_newest(memory: Installation) -> None:
    """The newest checkpoint into the archive, as the worker copies it."""
    assert await job.copy_checkpoint(memory) is not None


def length(dsn: str) -> int:
    ((count,),) = rows(dsn, "SELECT count(*) FROM audit_events WHERE log >= 0")
    return int(count)


def archived(data: Path) -> list[str]:
    folder = data / "archive"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def tampering(dsn: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """As the owner of the database would: without its triggers, which are as they were afterwards."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        triggers = connection.execute(
            "SELECT tgrelid::regclass::text, quote_ident(tgname), tgenabled FROM pg_trigger"
            " WHERE NOT tgisinternal AND tgrelid::regclass::text LIKE 'audit%'"
        ).fetchall()
        for table, name, _ in triggers:
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {name}")
        yield connection
        how = {"O": "", "A": "ALWAYS", "R": "REPLICA"}
        for table, name, enabled in triggers:
            if enabled != "D":
                connection.execute(f"ALTER TABLE {table} ENABLE {how[str(enabled)]} TRIGGER {name}")


@contextlib.asynccontextmanager
async def unguarded(memory: Installation) -> AsyncIterator[Committer]:
    """A committer of a program that does not look."""
    stores = memory
    committer = Committer(LogWriter(stores.postgres.dsn, 5.0, LogGuard(stores.trust_root)), stores.keys)
    try:
        yield committer
    finally:
        await committer.close()


async def refused(memory: Installation, dsn: str) -> RollbackDetected:
    """The refusal of a write, which left nothing behind."""
    before = length(dsn)
    with pytest.raises(RollbackDetected) as raised:
        await create(memory, content="y")
    assert length(dsn) == before
    return raised.value


@pytest.mark.parametrize("kept", ["checkpoint", "segment", "record"])
async def test_a_restored_database_is_not_written_to(database: Database, copy: Copy, tmp_path: Path, kept: str) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory, 10)
    earlier = copy()
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory, 10)
        if kept == "checkpoint":
            await copy_newest(memory)
        elif kept == "segment":
            await archive_all(memory)
            shutil.rmtree(tmp_path / "archive" / write.prefix_of(memory.trust_root.origin) / "checkpoints", True)
        else:
            note = rows(database("postgres"), "SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1")[0][0]
            remember(tmp_path, "https://elsewhere.example/", note.encode())
    before = archived(tmp_path)
    async with running_memory(earlier("memory_app"), tmp_path) as memory:
        error = await refused(memory, earlier("postgres"))
        assert (error.code, error.status, error.exit_code, error.retryable) == ("ROLLBACK_DETECTED", 503, 4, False)
        assert "docs/runbooks/rollback.md" in error.message
        guard = memory.committer.rollback_guard
        assert guard is not None
        assert (guard.state, guard.refuses) == ("ROLLBACK_DETECTED", True)
        assert b"memory_rollback_detected 1.0" in metrics.render()
        # What is not there is not signed again, nor archived, in whichever way.
        with pytest.raises(RollbackDetected):
            await publish_once(memory)
        for archive in (job.archive_rest, job.archive_full):
            with pytest.raises(RollbackDetected):
                await archive(memory)
        assert archived(tmp_path) == before
    # An operator's command is refused too.
    settings = config.load({}, database_url=earlier("memory_app"), embeddings_provider="none")
    async with open_installation(settings, tmp_path, "committer") as log:
        who = await known_caller(log.postgres, "memoryctl")
        with pytest.raises(RollbackDetected):
            await log.committer.submit(Change(who, Record("ops.some-verb.succeeded", {})))
    # The verifier names it, and the right database has no such finding.
    root = read_trust_root(tmp_path)
    async with open_installation(settings, tmp_path) as installation:
        found, _ = await examine(installation, root, [])
    assert [finding.code for finding in found] == ["ROLLBACK_DETECTED"]
    right = config.load({}, database_url=database("memory_app"), embeddings_provider="none")
    async with open_installation(right, tmp_path) as installation:
        assert (await examine(installation, root, []))[0] == []
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await create(memory, content="y")
        assert b"memory_rollback_detected 0.0" in metrics.render()
    assert verify(database("memory_app"), tmp_path).findings == ()


async def test_a_log_that_was_restored_and_continued_is_found_at_any_length(
    database: Database, copy: Copy, tmp_path: Path
) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory, 300)
    earlier = copy()
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory, 5)
        await copy_newest(memory)
        newest = parse_checkpoint(
            rows(database("postgres"), "SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1")[0][0].encode()
        )
    archive = tmp_path / "archive"
    for more in (5, 300):  # as long as it was, and a tile longer
        kept = archive.rename(tmp_path / "away")
        async with running_memory(earlier("memory_app"), tmp_path) as memory, unguarded(memory) as committer:
            for _ in range(more):
                await committer.submit(Change(caller(), Record("audit.heartbeat", {})))
            await publish_once(memory)
        shutil.rmtree(archive)
        kept.rename(archive)
        assert length(earlier("postgres")) >= newest.size
        async with running_memory(earlier("memory_app"), tmp_path) as memory:
            assert f"of {newest.size} entries" in (await refused(memory, earlier("postgres"))).message
    async with open_installation(config.load({}, database_url=earlier("memory_app")), tmp_path) as installation:
        verdict_findings, _ = await examine(installation, read_trust_root(tmp_path), [newest])
    assert [finding.code for finding in verdict_findings] == [
        "ROLLBACK_DETECTED"
    ] * 2  # the anchor given, and the archive


async def test_it_is_found_beneath_a_running_process_and_ends_with_the_right_rows(
    database: Database, tmp_path: Path
) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        guard = memory.committer.rollback_guard
        assert guard is not None
        await fill(memory, 300)
        await copy_newest(memory)
        await guard.check()
        assert (guard.state, guard.refuses) == ("ok", False)
        with tampering(admin) as owner:
            # The newest entries, and with them their seals and checkpoints, but not the tiles, from which alone all would look right.
            owner.execute("CREATE TABLE kept_events AS SELECT * FROM audit_events WHERE seq >= 290")
            owner.execute("CREATE TABLE kept_seals AS SELECT * FROM audit_seals WHERE last_seq >= 290")
            owner.execute("DELETE FROM audit_events WHERE seq >= 290")
            owner.execute("DELETE FROM audit_seals WHERE last_seq >= 290")
            await guard.check()
            await refused(memory, admin)
            owner.execute("INSERT INTO audit_events SELECT * FROM kept_events")
            owner.execute("INSERT INTO audit_seals SELECT * FROM kept_seals")
        await guard.check()
        assert not guard.refuses
        await create(memory, content="y")
        # One entry that the newest checkpoint covers, rewritten with its hash: the tiles alone would not show it.
        with tampering(admin) as owner:
            owner.execute("UPDATE audit_events SET entry = entry || 'x'::bytea WHERE seq = 299")
        await guard.check()
        await refused(memory, admin)


async def test_what_the_log_did_not_sign_stops_nothing(database: Database, tmp_path: Path) -> None:
    """One who may write to the archive cannot stop the service by it."""
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory, 3)
        await copy_newest(memory)
        stores, guard = memory, memory.committer.rollback_guard
        assert guard is not None
        note = rows(database("postgres"), "SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1")[0][0]
        folder = f"{write.prefix_of(stores.trust_root.origin)}checkpoints/"
        size = note.split("\n")[1]
        for place, text in enumerate(
            ("", "no note", note.replace(f"\n{size}\n", "\n999\n"), note.replace("/dev/", "/prod/"))
        ):

            async def chunks(text: str = text) -> AsyncIterator[bytes]:
                yield text.encode()

            await stores.archive.put_named(f"{folder}{999 + place:015d}", chunks())
        await guard.check()
        assert (guard.conflict, len(guard.gathered.doubtful)) == (None, 4)
        assert [w.checkpoint.size for w in guard.gathered.witnesses] == [int(size)]
        await create(memory, content="y")


class Silent:
    """An archive that cannot be reached."""

    async def versions(self, *_: object) -> ObjectPage:
        raise ObjectStoreUnavailable("S3 did not list the objects: it did not answer in time.")


async def test_an_archive_that_does_not_answer_stops_nothing_and_is_reported(
    database: Database, tmp_path: Path
) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory, 3)
        guard = memory.committer.rollback_guard
        assert guard is not None
        before = guard.proved_at
        real = [listing._store for listing in guard.witnesses._listings]
        for listing in guard.witnesses._listings:
            listing._store = Silent()  # type: ignore[assignment]
        await guard.check()
        assert (guard.state, guard.refuses, guard.proved_at) == ("unproved", False, before)
        assert "did not answer" in guard.gathered.unread[0]
        await create(memory, content="y")
        for listing, store in zip(guard.witnesses._listings, real, strict=True):
            listing._store = store
        await guard.check()
        assert guard.state == "ok"


def move_server(dsn: str, what: str = "system_identifier = '7000000000000000001'") -> None:
    """The seals as another server would have made them: what a failover or a restore looks like from the next one."""
    with tampering(dsn) as owner:
        owner.execute(f"UPDATE audit_seals SET {what}")


@pytest.mark.parametrize("what", ["system_identifier = '7000000000000000001'", "timeline = timeline + 7"])
async def test_another_server_is_written_to_once_the_log_is_proved_there(
    database: Database, tmp_path: Path, what: str
) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory, 3)
        await copy_newest(memory)
        size = length(admin)
    move_server(admin, what)
    for _ in range(2):
        async with running_memory(database("memory_app"), tmp_path) as memory:
            await create(memory, content="y")
    found = rows(
        admin,
        "SELECT convert_from(p.payload, 'UTF8')::jsonb FROM audit_events e JOIN audit_payloads p USING (log, seq)"
        " WHERE e.event_type = 'ops.server-changed.succeeded'",
    )
    assert len(found) == 1  # once, and before any other write
    ((payload,),) = found
    assert (payload["before"] != payload["after"], payload["entries"]) == (True, size)
    assert [proved["size"] for proved in payload["proved"]] == [size]
    if "timeline" not in what:  # a lower one on the same server is a finding: a seal's timelines never go back
        assert verify(database("memory_app"), tmp_path).findings == ()


async def test_another_server_waits_for_an_archive_that_does_not_answer(database: Database, tmp_path: Path) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory, 3)
        await copy_newest(memory)
        guard = memory.committer.rollback_guard
        assert guard is not None
        move_server(admin)
        real = [listing._store for listing in guard.witnesses._listings]
        for listing in guard.witnesses._listings:
            listing._store = Silent()  # type: ignore[assignment]
        guard._server = None  # as a process that starts now
        await guard.check()
        assert (guard.state, guard.refuses) == ("waiting", True)
        error = await refused(memory, admin)
        assert (error.code, error.retryable, error.retry_after) == ("ROLLBACK_DETECTED", True, 5)
        with pytest.raises(RollbackDetected):
            await publish_once(memory)
        for listing, store in zip(guard.witnesses._listings, real, strict=True):
            listing._store = store
        await guard.check()
        await create(memory, content="y")


async def test_an_archive_that_lost_everything_proves_nothing(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory, 3)
        await archive_all(memory)
    shutil.rmtree(tmp_path / "archive")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        guard = memory.committer.rollback_guard
        assert guard is not None
        assert guard.state == "unproved"
        assert "segments were written" in guard.gathered.unread[0]
        await create(memory, content="y")
    move_server(database("postgres"))
    async with running_memory(database("memory_app"), tmp_path) as memory:
        assert (await refused(memory, database("postgres"))).retryable


async def test_a_log_of_which_nothing_is_kept_elsewhere_goes_on_by_an_entry(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await fill(memory, 3)
    move_server(database("postgres"))
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await create(memory, content="y")
    found = rows(
        database("postgres"), "SELECT count(*) FROM audit_events WHERE event_type = 'ops.server-changed.succeeded'"
    )
    assert found == [(1,)]


async def eventually(holds: Callable[[], bool], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_every_process_looks_by_itself(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "EVERY", 0.2)
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        guard = memory.committer.rollback_guard
        assert guard is not None
        await fill(memory, 5)
        await copy_newest(memory)
        with tampering(admin) as owner:
            owner.execute("CREATE TABLE kept_events AS SELECT * FROM audit_events WHERE seq >= 3")
            owner.execute("CREATE TABLE kept_seals AS SELECT * FROM audit_seals WHERE last_seq >= 3")
            owner.execute("DELETE FROM audit_events WHERE seq >= 3")
            owner.execute("DELETE FROM audit_seals WHERE last_seq >= 3")
            await eventually(lambda: guard.refuses)
            await refused(memory, admin)
            owner.execute("INSERT INTO audit_events SELECT * FROM kept_events")
            owner.execute("INSERT INTO audit_seals SELECT * FROM kept_seals")
            await eventually(lambda: not guard.refuses)
        await create(memory, content="y")


async def test_a_writer_on_another_server_asks_for_the_proof(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        guard = memory.committer.rollback_guard
        assert guard is not None
        await fill(memory, 3)
        await copy_newest(memory)
        move_server(database("postgres"))
        guard._server = None  # as when the server changed beneath it
        assert (await refused(memory, database("postgres"))).retryable
        # Nobody waits a minute for it.
        await eventually(lambda: guard._server is not None, within=rollback.EVERY / 2)
        await create(memory, content="y")
