"""Who stands behind an actor of the log: an entry and a row in one transaction, and what becomes of rows that somebody changes."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memory_layer.api.auth import Authenticator
from memory_layer.audit import trust_root
from memory_layer.audit.verdict import Verdict
from memory_layer.errors import NotFound
from memory_layer.model import SCOPES, Caller, uuid7
from memory_layer.ops import audit, tokens
from memory_layer.service import artifacts
from memory_layer.service.actions.nodes import DeleteNode
from memory_layer.service.actions.principals import Introduce
from memory_layer.service.commit import Change, Idempotency, request_hash
from memory_layer.service.freeze import put
from memory_layer.service.installation import Installation
from memory_layer.service.principals import known_caller, revoke
from memory_layer.service.system import bind_principals, system_caller
from memory_layer.stores.token_keys import FixedKeys
from tests.support.service import caller, create, new_node, rows, running_memory

Database = Callable[[str], str]


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


def draft(tenant: str = "ann", service: str = "tester") -> Caller:
    """Of a service that a process sees for the first time."""
    return replace(caller(tenant), service=service, actor=uuid7(), draft=True)


def judge(database: Database, folder: Path) -> Verdict:
    root = trust_root.load((folder / "trust-root.json").read_bytes())
    return audit.verify_live(database("postgres"), root, pinned=True)


def entries(database: Database) -> list[tuple[int, str, str, str | None, Any]]:
    """(seq, type, actor, tenant, payload) of every entry."""
    found = rows(
        database("postgres"),
        "SELECT seq, event_type, convert_from(entry, 'UTF8'), tenant, convert_from(payload, 'UTF8') FROM audit_events"
        " JOIN audit_payloads p USING (log, seq) ORDER BY seq".replace(", tenant,", ", audit_events.tenant,"),
    )
    return [
        (seq, type_, json.loads(entry)["actor"], tenant, json.loads(data)) for seq, type_, entry, tenant, data in found
    ]


async def test_a_services_first_write_says_who_it_is(memory: Installation, database: Database, tmp_path: Path) -> None:
    who = draft()
    await memory.committer.submit(Change(who, new_node()))
    await memory.committer.submit(Change(who, new_node()))
    (first, created, again) = entries(database)
    assert first[:4] == (0, "ops.principal-created.succeeded", str(who.actor), None)
    ((tenant, service, id_, at, audit_id, _),) = rows(database("postgres"), "SELECT * FROM principals")
    assert (tenant, service, id_) == ("ann", "tester", who.actor)
    stamp = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert first[4] == {
        "tenant": "ann", "service": "tester", "id": str(who.actor), "createdAt": stamp, "tenantCreatedAt": stamp,
    }  # fmt: skip
    assert rows(database("postgres"), "SELECT id FROM audit_events WHERE seq = 0") == [(audit_id,)]
    assert [entry[1:3] for entry in (created, again)] == [("memory.node.created", str(who.actor))] * 2
    assert judge(database, tmp_path).findings == ()


async def test_a_refused_first_write_leaves_nothing(memory: Installation, database: Database) -> None:
    with pytest.raises(NotFound):
        await memory.committer.submit(Change(draft(), DeleteNode(uuid7(), None)))
    assert entries(database) == []
    assert rows(database("postgres"), "SELECT FROM principals UNION ALL SELECT FROM tenants") == []


async def test_one_refused_write_takes_nothing_from_its_neighbours(memory: Installation, database: Database) -> None:
    bad, good = draft(service="one"), draft(service="two")
    answers = await asyncio.gather(
        memory.committer.submit(Change(bad, DeleteNode(uuid7(), None))),
        memory.committer.submit(Change(good, new_node())),
        return_exceptions=True,
    )
    assert isinstance(answers[0], NotFound)
    assert [row[0] for row in rows(database("postgres"), "SELECT service FROM principals")] == ["two"]
    assert [entry[1] for entry in entries(database)] == ["ops.principal-created.succeeded", "memory.node.created"]


async def test_of_two_processes_that_meet_a_service_the_first_one_names_it(
    memory: Installation, database: Database
) -> None:
    first, second = draft(), draft()
    once = Idempotency("the same", request_hash("the same"))
    one, other = await asyncio.gather(
        *(memory.committer.submit(Change(who, new_node(), once)) for who in (first, second))
    )
    assert len(rows(database("postgres"), "SELECT FROM principals")) == 1
    assert one.answer == other.answer, "the second one's request is the first one's, by its key"
    assert len({entry[2] for entry in entries(database)}) == 1


async def test_a_freeze_keeps_nobody_from_being_introduced(memory: Installation, database: Database) -> None:
    await put(memory.committer, await system_caller(memory, "memoryctl"), "a drill")
    who = draft()
    outcome = await memory.committer.submit(Change(who, Introduce()))
    assert outcome.answer == {"id": str(who.actor)}
    assert (await memory.committer.submit(Change(draft(), Introduce()))).answer == outcome.answer


async def test_a_service_that_has_its_id_is_no_draft_any_more(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    """Its token was checked before its first write, and is not looked up again for some seconds: its writes share batches all the same."""
    who = draft()
    await memory.committer.submit(Change(who, new_node()))
    other = replace(who, actor=uuid7())  # by another token of the same service
    await asyncio.gather(*(memory.committer.submit(Change(one, new_node())) for one in [who, other] * 20))
    assert {entry[2] for entry in entries(database)} == {str(who.actor)}
    ((batches,),) = rows(database("postgres"), "SELECT count(*) FROM audit_seals")
    assert batches <= 10  # one each would be 41
    assert judge(database, tmp_path).findings == ()


async def test_a_door_writes_nothing_about_who_comes(memory: Installation, database: Database, tmp_path: Path) -> None:
    """Only a first write says who it is by; by then another process may have given the service its id, artifacts included."""
    authenticator = Authenticator(
        memory.settings, FixedKeys(tokens.public_key_pem(tmp_path / "keys" / "jwt.pem")), memory.postgres
    )
    headers = {"authorization": f"Bearer {tokens.issue(tmp_path / 'keys' / 'jwt.pem', 'reader', 'ann', SCOPES, 60)}"}
    who = await authenticator.caller(headers, "r-1")
    assert (who.service, who.draft) == ("reader", True)
    assert entries(database) == []
    other = replace(who, actor=uuid7())
    await memory.committer.submit(Change(other, new_node()))

    async def chunks() -> AsyncIterator[bytes]:
        yield b"bytes"

    done = await artifacts.upload(memory, who, artifacts.Upload(None, "a.txt", "text/plain", None, {}), chunks())
    assert done.answer["createdBy"] == str(other.actor)
    assert {entry[2] for entry in entries(database)} == {str(other.actor)}
    assert judge(database, tmp_path).findings == ()


async def test_an_operator_in_a_tenants_name_stays_the_installations_own(
    memory: Installation, database: Database
) -> None:
    operator = replace(await known_caller(memory.postgres, "memoryctl"), tenant="ann")
    await memory.committer.submit(Change(operator, new_node()))
    assert rows(database("postgres"), "SELECT tenant, service FROM principals") == [("_system", "memoryctl")]


async def test_a_hand_that_refuses_or_lets_in_is_named(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    """And a freeze keeps no operator from refusing."""
    operator = await system_caller(memory, "memoryctl")
    await memory.committer.submit(Change(draft(service="other"), new_node()))
    await put(memory.committer, operator, "a drill")
    await revoke(memory, operator, "ann", "tester", "case 12")
    assert judge(database, tmp_path).findings == ()
    swapped = "UPDATE principals SET revoked_at = CASE service WHEN 'other' THEN now() END WHERE tenant = 'ann'"
    rows(database("postgres"), swapped)
    found = [(one.code, one.found) for one in judge(database, tmp_path).findings]
    assert found == [("LOG_TABLE_MISMATCH", "other: revoked_at")] * 2


async def test_what_was_there_before_is_adopted_once(memory: Installation, database: Database, tmp_path: Path) -> None:
    """An installation from before principals had entries; its API wrote rows alone."""
    rows(database("postgres"), "INSERT INTO tenants (tenant) VALUES ('ann'), ('bob')")
    old = uuid.UUID(int=7)
    rows(database("postgres"), "INSERT INTO principals (tenant, service, id) VALUES ('ann', 'tester', %s)", [old])
    await create(memory)
    before = judge(database, tmp_path)
    assert before.findings == ()
    assert any("1 rows of principals" in line for line in before.not_checked)
    for _ in range(2):
        await bind_principals(memory)
    kinds = [entry[1] for entry in entries(database)]
    assert kinds == ["memory.node.created", "ops.principal-created.succeeded", "ops.principals-adopted.succeeded"]
    assert [one["id"] for one in entries(database)[-1][4]["principals"]] == [str(old)]
    after = judge(database, tmp_path)
    assert [finding.found for finding in after.findings] == ["none about one"]  # bob, who has no principal
    rows(database("postgres"), "DELETE FROM tenants WHERE tenant = 'bob'")
    assert judge(database, tmp_path).findings == ()
    rows(database("postgres"), "UPDATE principals SET service = 'mallory' WHERE id = %s", [old])
    (finding,) = judge(database, tmp_path).findings
    assert (finding.code, finding.found) == ("LOG_TABLE_MISMATCH", "other: service")


async def test_an_actor_whom_nothing_tells_of_is_named(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    await bind_principals(memory)
    await create(memory)  # by an id that was made up
    (finding,) = judge(database, tmp_path).findings
    assert (finding.code, finding.seq) == ("LOG_TABLE_MISMATCH", 1)
    assert str(uuid.UUID(int=7)) in finding.expected


async def test_a_row_that_is_gone_is_not_made_up_for_by_a_new_one(
    memory: Installation, database: Database, tmp_path: Path
) -> None:
    await bind_principals(memory)
    await memory.committer.submit(Change(draft(), new_node()))
    rows(database("postgres"), "DELETE FROM principals WHERE service = 'tester'")
    memory.committer._transactor.introduced.clear()  # as another process, which has not seen it
    await memory.committer.submit(Change(draft(), new_node()))
    found = {finding.found.split()[-1] for finding in judge(database, tmp_path).findings}
    assert {"row", "anew"} <= found, judge(database, tmp_path).findings
