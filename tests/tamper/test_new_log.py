"""`memoryctl audit new-log`: a log that cannot go on ends, and the next incarnation says what the old one proves, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memory_layer import config
from memory_layer.audit import trust_root
from memory_layer.audit.verdict import Verdict
from memory_layer.errors import LogNotOpen, RollbackDetected, Tampered
from memory_layer.model import uuid7
from memory_layer.ops import audit, embedded, new_log, rotate
from memory_layer.ops.operate import operate
from memory_layer.service import nodes
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.commit import Change
from memory_layer.service.installation import open_installation
from memory_layer.stores.logs import read_trust_root
from tests.support.databases import new_database
from tests.support.full_installation import full_installation
from tests.support.product import clean_environment, run_ctl
from tests.support.real_archive import archive_all
from tests.support.service import caller, create, new_node, patch_node, rows, running_memory
from tests.tamper.test_rollback import copy_newest, tampering

pytestmark = pytest.mark.slow

REASON = "restored to an earlier point, case 12"


class Place:
    """An installation whose database was restored to before its newest entries. ``node``: one that was tampered with."""

    def __init__(self, dsn: str, data: Path) -> None:
        self.dsn, self.data = dsn, data

    def role(self, name: str) -> str:
        return self.dsn.replace("postgres@", f"{name}@")

    def ctl(self, *words: str, role: str = "memory_owner", code: int = 0) -> Any:
        """With ``MIGRATION_DATABASE_URL`` of that role."""
        dsns = {"DATABASE_URL": self.role("memory_app"), "MIGRATION_DATABASE_URL": self.role(role)}
        done = run_ctl(
            *words, "--data", str(self.data), "--json", env=clean_environment() | dsns | {"EMBEDDINGS_PROVIDER": "none"}
        )
        assert done.returncode == code, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
        return json.loads(done.stdout) if done.stdout.strip() else done.stderr

    def new_log(self, code: int = 0, role: str = "memory_owner") -> Any:
        return self.ctl("audit", "new-log", "--reason", REASON, "--yes", code=code, role=role)

    def judge(self, root: Path | None = None, **facts: Any) -> Verdict:
        known = trust_root.load((root or self.data / "trust-root.json").read_bytes())
        return audit.verify_live(self.dsn, known, pinned=True, **facts)

    def origins(self) -> list[str]:
        return [
            origin.rpartition("/")[2]
            for (origin,) in rows(self.dsn, "SELECT origin FROM audit_logs WHERE log >= 0 ORDER BY log")
        ]


@pytest.fixture
def place(cluster: embedded.Cluster, tmp_path: Path) -> Iterator[Place]:
    """Everything that the product writes, then a restore from before the newest entries, which the archive has a checkpoint of."""
    with full_installation(cluster, tmp_path) as made, contextlib.ExitStack() as stack:
        database = psycopg.conninfo.conninfo_to_dict(made.dsn)["dbname"]
        earlier = stack.enter_context(new_database(cluster, str(database)))
        rows(made.dsn, "DELETE FROM write_freeze")
        asyncio.run(_lose(made.dsn.replace("postgres@", "memory_app@"), tmp_path))
        yield Place(earlier("postgres"), tmp_path)


async def _lose(dsn: str, data: Path) -> None:
    """Entries that the restored database does not have."""
    async with running_memory(dsn, data) as memory:
        for _ in range(3):
            await create(memory, content="lost")
        await publish_once(memory)
        await copy_newest(memory)


def test_everything_goes_on_in_the_next_incarnation(place: Place) -> None:
    before = {
        row[0]: row
        for row in rows(
            place.dsn, "SELECT id, tenant, version, content, created_at, deleted_at, legal_hold FROM memory_nodes"
        )
    }
    root = read_trust_root(place.data)
    said = place.new_log()
    assert said["facts"]["leftOut"] == 0
    assert said["facts"]["lacks"][0]["size"] > said["facts"]["held"]["size"]
    assert (place.data / f"trust-root.v{root.version}.json").read_bytes()
    assert place.origins() == ["e1", "e2"]
    assert read_trust_root(place.data).origin == root.origin[:-1] + "2"
    # Rows are as they were, and what the new log says of them is all there is to say.
    after = {
        row[0]: row
        for row in rows(
            place.dsn, "SELECT id, tenant, version, content, created_at, deleted_at, legal_hold FROM memory_nodes"
        )
    }
    assert after == before
    verdict = place.judge()
    assert (verdict.findings, verdict.exit_code) == ((), 10), verdict.findings
    assert any("e1, which this database holds too" in line for line in verdict.not_checked)
    # The first entry says where it comes from.
    ((first,),) = rows(
        place.dsn,
        "SELECT convert_from(p.payload, 'UTF8') FROM audit_events e JOIN audit_payloads p USING (log, seq) WHERE e.log = 1 AND e.seq = 0"
        " AND e.event_type = 'audit.incarnation.opened'",
    )
    told = json.loads(first)
    assert (told["origin"], told["reason"], told["trustRoot"]) == (root.origin, REASON, root.digest)
    assert told["checkpoint"]["size"] == told["lacks"][0]["size"] > told["held"]["size"] > 0
    assert told["held"]["root"] is not None
    assert (told["verdict"]["name"], told["verdict"]["findings"]) == ("CONSISTENT_UNANCHORED", {})
    # The old log is judged as one that ended, by the trust root of then.
    old = place.data / f"trust-root.v{root.version}.json"
    ended = place.judge(old, others=[read_trust_root(place.data).origin])
    assert (ended.findings, ended.exit_code) == ((), 10), ended.findings
    assert any(line.startswith("rows: the log has ended") for line in ended.not_checked)
    assert {finding.code for finding in place.judge(old).findings} == {"FOREIGN_LOG"}


async def test_the_service_goes_on(place: Place) -> None:
    app = place.role("memory_app")
    ((live, tenant),) = rows(
        place.dsn, "SELECT id, tenant FROM memory_nodes WHERE deleted_at IS NULL AND content LIKE 'south%%'"
    )
    async with running_memory(app, place.data) as memory:
        with pytest.raises(RollbackDetected):
            await create(memory, content="x")
    place.new_log()
    place.ctl("freeze", "off")  # the freeze went along
    who = replace(caller(tenant), actor=uuid7(), draft=True)
    async with running_memory(app, place.data) as memory:
        assert (await nodes.get(memory, who, live))["content"] == "south gate"
        await memory.committer.submit(Change(who, patch_node(live, content="west gate")))
        await memory.committer.submit(Change(who, new_node(content="new")))
        await publish_once(memory)
        await copy_newest(memory)
        await archive_all(memory, entries=200)
    settings = config.load({}, database_url=app, embeddings_provider="none")
    async with (
        open_installation(settings, place.data) as installation,
        contextlib.aclosing(rotate.steps(installation)) as steps,
    ):
        async for _ in steps:
            pass
    assert place.judge().findings == ()
    assert place.ctl("audit", "verify", code=10)["findings"] == []


async def test_what_the_old_log_does_not_prove_is_not_carried(place: Place) -> None:
    (changed,), (gone,) = rows(
        place.dsn,
        "SELECT id FROM memory_nodes WHERE content LIKE 'north gate%%' AND NOT legal_hold AND tenant = 'bob' ORDER BY id LIMIT 2",
    )
    rows(place.dsn, "UPDATE memory_nodes SET content = 'forged' WHERE id = %s", [changed])
    with psycopg.connect(place.dsn, autocommit=True) as owner:
        owner.execute("DELETE FROM memory_vectors WHERE memory_node_id = %s", [gone])
        owner.execute("DELETE FROM memory_nodes WHERE id = %s", [gone])
    said = place.new_log(code=1)
    left = [one["finding"] for one in said["findings"] if one["id"] == "audit.left-out"]
    assert len(left) == said["facts"]["leftOut"] == 2
    assert any(str(changed) in line for line in left)
    assert any(str(gone) in line and "gone" in line for line in left)
    assert {finding.code for finding in place.judge().findings} == {"STATE_RECONCILE_MISMATCH"}
    async with running_memory(place.role("memory_app"), place.data) as memory:
        with pytest.raises(Tampered):
            await nodes.get(memory, caller("bob"), changed)
    place.ctl("tamper", "accept", str(changed), "--reason", "known", "--yes")
    assert place.judge().findings == ()


async def test_a_server_with_the_old_trust_root_writes_nothing(place: Place) -> None:
    root = read_trust_root(place.data)
    place.new_log()
    forgetful = place.data.with_name("forgetful")
    shutil.copytree(place.data / "keys", forgetful / "keys")
    shutil.copyfile(place.data / f"trust-root.v{root.version}.json", forgetful / "trust-root.json")
    place.ctl("freeze", "off")
    async with running_memory(place.role("memory_app"), forgetful) as memory:
        with pytest.raises(LogNotOpen, match=r"new-log\.md"):
            await create(memory, content="x")
    assert place.judge().findings == ()


def test_another_role_opens_none(place: Place) -> None:
    said = place.new_log(code=3, role="memory_app")
    assert "MIGRATION_DATABASE_URL" in str(said)
    assert place.origins() == ["e1"]


def test_what_was_cut_off_is_finished(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first entry, between rows, and before the trust root."""
    owner = place.role("memory_owner")

    def attempt() -> None:
        settings = config.load({}, database_url=owner, embeddings_provider="none")
        asyncio.run(once(settings))

    async def once(settings: config.Settings) -> None:
        async with open_installation(settings, place.data) as installation:
            await operate(
                installation, "audit-new-log", {}, lambda run: new_log.open_new(run, REASON), lock=new_log.LOCK
            )

    class Cut(Exception):
        pass

    def cut(*_: Any, **__: Any) -> Any:
        raise Cut

    for name in ("OpenIncarnation", "CarryArtifact", "write_trust_root"):
        with monkeypatch.context() as patched:
            patched.setattr(new_log, name, cut)
            with pytest.raises(Cut):
                attempt()
        assert read_trust_root(place.data).origin.endswith("/e1")
    place.new_log()
    assert place.origins() == ["e1", "e2"]
    assert place.judge().findings == ()


def test_no_name_is_given_twice(place: Place) -> None:
    """The database is restored to before its second incarnation, of which the archive knows."""
    old = (place.data / "trust-root.json").read_bytes()
    known = read_trust_root(place.data)
    place.new_log()

    async def publish() -> None:
        async with running_memory(place.role("memory_app"), place.data) as memory:
            await publish_once(memory)
            await copy_newest(memory)

    asyncio.run(publish())
    with tampering(place.dsn) as owner:
        for table in (
            "audit_checkpoints",
            "audit_tiles",
            "audit_trees",
            "audit_payloads",
            "audit_events",
            "audit_seals",
            "audit_logs",
        ):
            owner.execute(f"DELETE FROM {table} WHERE log = 1")
    (place.data / "trust-root.json").write_bytes(old)
    (place.data / f"trust-root.v{known.version}.json").unlink()
    place.new_log(code=1)  # rows are as the second incarnation left them
    assert place.origins() == ["e1", "e3"]


def test_a_log_that_was_tampered_with_ends(place: Place) -> None:
    """Entries in the middle are gone: rows that they spoke of are left out, and nothing of the damage is carried over."""
    with tampering(place.dsn) as owner:
        owner.execute("DELETE FROM audit_events WHERE log = 0 AND seq = 5")
    assert place.judge().exit_code == 40
    said = place.new_log(code=1)
    assert said["facts"]["verdict"]["exit"] == 40
    assert said["facts"]["held"]["root"] is None
    left = {one["finding"].split()[1] for one in said["findings"] if one["id"] == "audit.left-out"}
    assert left
    found = place.judge()
    assert {finding.code for finding in found.findings} == {"STATE_RECONCILE_MISMATCH"}
    for node in left:
        place.ctl("tamper", "accept", node, "--reason", "known", "--yes")
    assert place.judge().findings == ()


def test_what_was_carried_as_a_whole_is_still_that(place: Place) -> None:
    """Runs and manifests from before have their entries in the old log: the first entry of the new one binds them."""
    place.new_log()
    for change, back in (
        (
            "UPDATE ops_runs SET verb = 'look-away' WHERE verb = 'look-around'",
            "UPDATE ops_runs SET verb = 'look-around' WHERE verb = 'look-away'",
        ),
        (
            "UPDATE namespaces SET created_at = created_at - interval '1 day'",
            "UPDATE namespaces SET created_at = created_at + interval '1 day'",
        ),
        (
            "UPDATE artifact_manifests SET artifacts = artifacts + 1",
            "UPDATE artifact_manifests SET artifacts = artifacts - 1",
        ),
    ):
        rows(place.dsn, change)
        assert place.judge().findings != (), change
        rows(place.dsn, back)
        assert place.judge().findings == ()
