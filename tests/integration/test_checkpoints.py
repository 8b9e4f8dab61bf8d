"""Checkpoints over a log that the service wrote: published once for each size, proven, healed, and refused when rows were changed."""

from __future__ import annotations

import asyncio
import base64
import itertools
import logging
import stat
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from memory_layer import config
from memory_layer.audit import trust_root
from memory_layer.audit.checkpoint import check_checkpoint, parse_checkpoint
from memory_layer.audit.proof import parse_proof, verify_proof
from memory_layer.audit.tree import Frontier, decode_bundle, tiles_of, verify_consistency
from memory_layer.errors import NotFound, NotYetPublished, PolicyRefused, UsageError, ValidationError
from memory_layer.ops.audit import verify_live
from memory_layer.ops.durable_files import write_over
from memory_layer.ops.first_start import ensure_keys, start_log
from memory_layer.service import audit, checkpoints
from memory_layer.service.checkpoints import TreeDiffers, heartbeat_once, publish_once
from memory_layer.service.installation import Installation
from memory_layer.stores.signers import open_checkpoint_signer
from tests.support.service import caller, create, rows, running_memory
from tests.support.triggers import switched_off

Database = Callable[[str], str]


async def write(memory: Installation, count: int) -> None:
    for done in range(0, count, 100):
        await asyncio.gather(*(create(memory, content="x") for _ in range(min(count - done, 100))))


def leaves(dsn: str) -> list[bytes]:
    return [bytes.fromhex(h) for (h,) in rows(dsn, "SELECT hash FROM audit_events ORDER BY log, seq")]


def root_of(hashes: list[bytes]) -> bytes:
    tree = Frontier()
    tree.extend(hashes)
    return tree.root()


def stored(dsn: str) -> dict[int, tuple[bytes, str | None]]:
    return {s: (bytes(r), n) for s, r, n in rows(dsn, "SELECT size, root, note FROM audit_checkpoints ORDER BY size")}


def root_file(data: Path) -> trust_root.TrustRoot:
    return trust_root.load((data / "trust-root.json").read_bytes())


def tamper(dsn: str, *statements: str) -> None:
    """As whoever owns the database would: without its triggers."""
    tables = ("audit_events", "audit_checkpoints", "audit_tiles", "audit_seals")
    with psycopg.connect(dsn, autocommit=True) as connection, switched_off(connection, *tables):
        for statement in statements:
            connection.execute(statement)


async def test_every_published_checkpoint_anchors_the_log(database: Database, tmp_path: Path) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        assert await publish_once(memory) == 0  # nothing to say yet
        with pytest.raises(NotYetPublished):
            await audit.checkpoint(memory)
        for count in (1, 2, 253, 1, 300, 443):  # a tile fills exactly, and in the middle
            await write(memory, count)
            assert await publish_once(memory) == 1
            assert await publish_once(memory) == 0
        published, hashes = stored(admin), leaves(admin)
        assert list(published)[-1] == len(hashes) >= 1000
        known = root_file(tmp_path)
        for size, (root, note) in published.items():
            assert root == root_of(hashes[:size])
            assert note is not None
            checkpoint = parse_checkpoint(note.encode())
            assert (checkpoint.size, checkpoint.root, check_checkpoint(checkpoint, known)) == (size, root, None)
            verdict = verify_live(database("memory_app"), known, pinned=True, anchors=[checkpoint])
            assert (verdict.exit_code, verdict.name, verdict.findings) == (0, "OK_ANCHORED", ())
            assert verdict.counts.checkpoints_valid == len(published)
        assert await audit.checkpoint(memory) == str(list(published.values())[-1][1]).encode()


async def test_every_entry_is_proven_and_any_two_sizes_are_consistent(database: Database, tmp_path: Path) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        sizes = []
        for count in (7, 249, 300, 444):
            await write(memory, count)
            await publish_once(memory)
            sizes.append(list(stored(admin))[-1])
        known, hashes = root_file(tmp_path), leaves(admin)
        who = caller()
        for id_, seq, entry in rows(admin, "SELECT id, seq, entry FROM audit_events ORDER BY seq"):
            proof = parse_proof((await audit.proof(memory, who, id_))[1])
            assert (proof.index, proof.entry, proof.checkpoint.size) == (seq, bytes(entry), len(hashes))
            assert verify_proof(proof, known) is None
            other = replace(proof, path=proof.path[:-1])
            assert (finding := verify_proof(other, known)) is not None
            assert finding.code == "PROOF_INVALID"
        for first, second in itertools.combinations_with_replacement(sorted({0, 1, 255, 256, 257, *sizes}), 2):
            told = await audit.consistency(memory, first, second)
            path = [base64.b64decode(value) for value in told["hashes"]]
            assert verify_consistency(first, second, path, root_of(hashes[:first]), root_of(hashes[:second]))
            assert (told["checkpoint"] is not None) == (second in sizes)
        assert (await audit.consistency(memory, 0, None))["to"] == len(hashes)
        for first, second, error in ((2, 1, ValidationError), (0, len(hashes) + 1, NotYetPublished)):
            with pytest.raises(error):
                await audit.consistency(memory, first, second)


async def test_tiles_give_the_published_tree(database: Database, tmp_path: Path) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await write(memory, 600)
        await publish_once(memory)
        await write(memory, 100)  # beyond what is published
        hashes = leaves(admin)[:600]
        for level, index, width in tiles_of(600):
            data = await audit.tile(memory, level, index, width)
            assert len(data) == 32 * width
            if level == 0:
                assert data == b"".join(hashes[256 * index : 256 * index + width])
                entries = decode_bundle(await audit.tile(memory, "entries", index, width))
                told = rows(
                    admin, "SELECT entry FROM audit_events WHERE seq / 256 = %s AND seq < 600 ORDER BY seq", [index]
                )
                assert entries == [bytes(entry) for (entry,) in told]
            else:
                assert data == b"".join(root_of(hashes[256 * n : 256 * (n + 1)]) for n in range(2))
        for beyond in ((0, 2, 89), (0, 2, 256), (0, 3, 1), (1, 0, 3), (1, 1, 1), (2, 0, 1), ("entries", 2, 89)):
            with pytest.raises(NotFound):
                await audit.tile(memory, *beyond)  # type: ignore[arg-type]
        assert await audit.tile(memory, 0, 2, 5) == b"".join(hashes[512:517])


async def test_a_long_log_is_caught_up_in_chunks(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await write(memory, 900)
        monkeypatch.setattr(checkpoints, "CHUNK", 100)
        taken: list[tuple[int, int]] = []
        grow = checkpoints._grow

        async def stop_after_four(fetch: Any, tree: Any, last: int, key: str) -> None:
            if len(taken) == 4:
                raise ConnectionError("killed")
            taken.append((tree.size, last))
            await grow(fetch, tree, last, key)

        monkeypatch.setattr(checkpoints, "_grow", stop_after_four)
        with pytest.raises(Exception):  # noqa: B017, PT011
            await publish_once(memory)
        assert rows(admin, "SELECT size FROM audit_trees") == [(400,)]
        assert stored(admin) == {}
        taken.clear()
        monkeypatch.setattr(checkpoints, "_grow", grow)
        assert await publish_once(memory) == 1
        assert stored(admin)[900][0] == root_of(leaves(admin))


async def test_publishers_at_once_make_one_row_for_a_size(database: Database, tmp_path: Path) -> None:
    admin = database("postgres")
    async with (
        running_memory(database("memory_app"), tmp_path) as one,
        running_memory(database("memory_app"), tmp_path) as two,
    ):
        for _ in range(15):
            await asyncio.gather(write(one, 40), *(publish_once(memory) for memory in (one, two, one, two)))
        await publish_once(two)
        hashes = leaves(admin)
        published = stored(admin)
        assert max(published) == len(hashes)
        known = root_file(tmp_path)
        for size, (root, note) in published.items():
            assert root == root_of(hashes[:size])
            assert check_checkpoint(parse_checkpoint(str(note).encode()), known) is None
        while_held = two.postgres.leading(checkpoints.LEADER)
        await write(one, 1)
        async with while_held as fetch:
            assert fetch is not None
            assert await publish_once(one) == 0  # another one is at it
        assert await publish_once(one) == 1


async def test_a_kill_between_row_and_note_is_repaired(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        sign = checkpoints._sign

        async def killed(*_: object) -> int:
            raise KeyboardInterrupt

        await write(memory, 5)
        monkeypatch.setattr(checkpoints, "_sign", killed)
        for count in (0, 300):  # twice in a row
            await write(memory, count)
            with pytest.raises(KeyboardInterrupt):
                await publish_once(memory)
        assert [note for _, note in stored(admin).values()] == [None, None]
        with pytest.raises(NotYetPublished):
            await audit.checkpoint(memory)
        verdict = verify_live(database("memory_app"), root_file(tmp_path), pinned=True)
        assert (verdict.exit_code, verdict.findings) == (10, ())
        monkeypatch.setattr(checkpoints, "_sign", sign)
        assert await publish_once(memory) == 2
        for size, (root, note) in stored(admin).items():
            assert parse_checkpoint(str(note).encode()).root == root == root_of(leaves(admin)[:size])


WRONG = "'\\x" + "11" * 32 + "'"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (f"UPDATE audit_checkpoints SET root = {WRONG}", "do not continue the checkpoint of size 300"),
        (f"UPDATE audit_checkpoints SET root = {WRONG}, note = NULL", "is stored for that size"),
        (f"INSERT INTO audit_checkpoints (log, size, root) VALUES (0, 310, {WRONG})", "do not continue"),
        ("INSERT INTO audit_checkpoints (log, size, root) VALUES (0, 999, '\\x" + "00" * 32 + "')", "999 were taken"),
        ("UPDATE audit_trees SET edge[1] = sha256(edge[1]) || substring(edge[1] FROM 33)", None),
        ("UPDATE audit_trees SET edge[2] = sha256(edge[2])", "do not continue"),
        ("UPDATE audit_trees SET edge[2] = ''", "edge is damaged"),
        ("UPDATE audit_trees SET size = 299", "edge is damaged"),
        ("UPDATE audit_tiles SET data = sha256(data) || substring(data FROM 33)", "is stored with other hashes"),
        ("UPDATE audit_events SET hash = repeat('0', 64) WHERE seq = 280", "do not continue"),
        ("DELETE FROM audit_events WHERE seq = 305", "only 9 are there"),
        ("DELETE FROM audit_seals WHERE last_seq > 200", "were taken into its tree before"),
    ],
)
async def test_nothing_is_signed_once_rows_were_changed(
    database: Database, tmp_path: Path, change: str, complaint: str | None
) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await write(memory, 300)
        await publish_once(memory)
        before = stored(admin)[300][1]
        if not change.startswith("UPDATE audit_checkpoints SET root = " + WRONG + ", note"):
            for _ in range(10):
                await create(memory)
        if "audit_tiles" in change:
            rows(admin, "DELETE FROM audit_trees")  # built again, and compared
        tamper(admin, change)
        if complaint is None:  # the edge of level 0 is not what a proof or a root is made of: it stands in the entries
            await publish_once(memory)
            assert stored(admin)[310][0] == root_of(leaves(admin))
            return
        for _ in range(2):
            with pytest.raises(TreeDiffers, match=complaint):
                await publish_once(memory)
        signed = [note for _, note in stored(admin).values() if note is not None]
        assert signed in ([before], [])


async def test_a_lost_tree_is_built_again_and_goes_on(database: Database, tmp_path: Path) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await write(memory, 600)
        await publish_once(memory)
        rows(admin, "DELETE FROM audit_trees")
        await write(memory, 1)
        assert await publish_once(memory) == 1
        hashes = leaves(admin)
        assert {size: root for size, (root, _) in stored(admin).items()} == {n: root_of(hashes[:n]) for n in (600, 601)}


async def test_the_runtime_role_takes_no_checkpoint_back(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await write(memory, 300)
        await publish_once(memory)
    for statement in (
        "UPDATE audit_checkpoints SET note = 'x'",
        f"UPDATE audit_checkpoints SET root = {WRONG}",
        "DELETE FROM audit_checkpoints",
        "UPDATE audit_tiles SET data = ''",
        "DELETE FROM audit_tiles",
        "DELETE FROM audit_trees",
        "TRUNCATE audit_checkpoints",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            rows(database("memory_app"), statement)


async def test_an_erased_payload_is_told_from_one_that_is_withheld(database: Database, tmp_path: Path) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await write(memory, 1)
        ((event,),) = rows(admin, "SELECT id FROM audit_events")
        assert (await audit.event(memory, caller(), event))["payload"]["status"] == "shown"
        assert (await audit.event(memory, caller("bob"), event))["payload"] == {"status": "withheld"}
        rows(admin, "DELETE FROM audit_payloads")
        assert (await audit.event(memory, caller(), event))["payload"] == {"status": "erased"}
        with pytest.raises(NotFound):
            await audit.event(memory, caller("bob", scopes=frozenset({"audit:read"})), event)


# --- Heartbeats


async def test_silence_is_broken_by_one_heartbeat(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = database("postgres")
    async with (
        running_memory(database("memory_app"), tmp_path) as one,
        running_memory(database("memory_app"), tmp_path) as two,
    ):
        await create(one)
        assert not await heartbeat_once(one)
        monkeypatch.setattr(checkpoints, "HEARTBEAT_AFTER", 0.5)
        deadline = asyncio.get_running_loop().time() + 60
        while not any(await asyncio.gather(*(heartbeat_once(memory) for memory in (one, two, one, two)))):
            assert asyncio.get_running_loop().time() < deadline
        beats = rows(admin, "SELECT tenant, seq FROM audit_events WHERE event_type = 'audit.heartbeat'")
        assert beats == [(None, 2)]  # after the entry that says who the worker is
        await publish_once(one)
        verdict = verify_live(database("memory_app"), root_file(tmp_path), pinned=True)
        assert (verdict.exit_code, verdict.findings) == (10, ())
        (page,) = (await audit.events(one, caller(), audit.EventFilter(type="audit.heartbeat"), None, 5)).items
        found = await audit.event(one, caller(), uuid.UUID(page["auditId"]))
        assert found["payload"]["status"] == "shown"
        assert found["payload"]["value"]["entries"] == 1


# --- Keys and the trust root


async def test_the_first_start_makes_a_key_of_its_own_for_checkpoints(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path):
        pass
    path = tmp_path / "keys" / "checkpoint.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_pem_private_key(path.read_bytes(), None)
    purposes = {key.purpose: key.key_id for key in root_file(tmp_path).keys}
    assert {"seal", "checkpoint"} <= set(purposes)
    assert purposes["seal"] != purposes["checkpoint"]
    assert (signer := open_checkpoint_signer(tmp_path)) is not None
    assert signer.key_id == purposes["checkpoint"]


async def test_an_older_installation_gets_the_key_at_its_next_start(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config.load({}, database_url=database("memory_app"), embeddings_provider="none")
    ensure_keys(tmp_path)
    first = await start_log(settings, tmp_path, database("memory_app"), database("memory_owner"))
    new = root_file(tmp_path)
    old_bytes = trust_root.dump(new.origin, [key for key in new.keys if key.purpose == "seal"])
    write_over(tmp_path / "trust-root.json", old_bytes, 0o644)
    (tmp_path / "keys" / "checkpoint.pem").unlink()
    with caplog.at_level(logging.WARNING):
        second = await start_log(settings, tmp_path, database("memory_app"))
    assert second.digest != first.digest
    assert second.digest in caplog.text
    assert trust_root.load(old_bytes).digest in caplog.text
    added = root_file(tmp_path)
    assert (added.version, added.digest) == (2, second.digest)
    assert {"seal", "checkpoint"} <= {key.purpose for key in added.keys}
    caplog.clear()
    assert (await start_log(settings, tmp_path, database("memory_app"))).digest == second.digest
    assert caplog.text == ""
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await write(memory, 10)
        await publish_once(memory)
        note = parse_checkpoint(await audit.checkpoint(memory))
    assert verify_live(database("memory_app"), added, pinned=True, anchors=[note]).exit_code == 0
    # Whoever pinned the one before goes on to verify the log; only the checkpoints say nothing to them.
    verdict = verify_live(database("memory_app"), trust_root.load(old_bytes), pinned=True)
    assert (verdict.exit_code, verdict.findings) == (10, ())


async def test_a_key_that_the_trust_root_does_not_name_starts_nothing(database: Database, tmp_path: Path) -> None:
    async with running_memory(database("memory_app"), tmp_path):
        pass
    (tmp_path / "keys" / "checkpoint.pem").write_bytes((tmp_path / "keys" / "jwt.pem").read_bytes())
    with pytest.raises(PolicyRefused, match=r"checkpoint\.pem is not in"):
        async with running_memory(database("memory_app"), tmp_path):
            pass
    (tmp_path / "keys" / "checkpoint.pem").unlink()
    async with running_memory(database("memory_app"), tmp_path) as memory:
        assert memory.checkpoint_signer is None


async def test_without_the_log_s_own_key_nothing_is_published(database: Database, tmp_path: Path) -> None:
    admin = database("postgres")
    async with running_memory(database("memory_app"), tmp_path) as memory:
        await write(memory, 3)
        await publish_once(memory)
        own = memory.checkpoint_signer
        ensure_keys(tmp_path / "other")
        (tmp_path / "other" / "keys" / "seal.pem").rename(tmp_path / "other" / "keys" / "checkpoint.pem")
        other = open_checkpoint_signer(tmp_path / "other")
        await write(memory, 1)
        with pytest.raises(PolicyRefused, match="another"):
            await publish_once(memory.with_parts(checkpoint_signer=other))
        with pytest.raises(UsageError, match=r"checkpoint\.pem"):
            await publish_once(memory.with_parts(checkpoint_signer=None))
        assert list(stored(admin)) == [3]
        assert own is not None
        assert await publish_once(memory) == 1
