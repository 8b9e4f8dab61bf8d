"""What stands behind an API key: its form, its last use, its end, the first admin, and rows that somebody changes."""

from __future__ import annotations

import datetime as dt
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import jwt
import pytest

from memory_layer.api.auth import Authenticator
from memory_layer.audit import trust_root
from memory_layer.errors import MemoryLayerError, PolicyRefused, Unauthenticated
from memory_layer.model import Caller
from memory_layer.ops import audit, tokens
from memory_layer.service import api_keys, principals, tenants
from memory_layer.service.installation import Installation
from memory_layer.service.system import bind_principals, system_caller
from memory_layer.stores.token_keys import FixedKeys
from tests.support.kms_server import KmsServer
from tests.support.product import clean_environment, run_ctl
from tests.support.service import rows, running_memory

Database = Callable[[str], str]


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        await bind_principals(opened)
        yield opened


@pytest.fixture
async def operator(memory: Installation) -> Caller:
    return await system_caller(memory, "memoryctl")


def authenticator(memory: Installation, data: Path) -> Authenticator:
    return Authenticator(memory.settings, FixedKeys(tokens.public_key_pem(data / "keys" / "jwt.pem")), memory.postgres)


def test_a_key_is_told_from_any_other_word_by_its_form() -> None:
    made = {api_keys.new_key() for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch(r"mlk_[0-9A-Za-z]{38}", key) and api_keys.is_key(key) for key in made)
    for key in list(made)[:20]:
        assert not api_keys.is_key(key[:10] + chr(ord("A") + (key[10] == "A")) + key[11:])
        assert not api_keys.is_key(key + "\n")
    assert not api_keys.is_key("mlk_" + "é" * 38)


async def test_the_last_use_is_written_once_an_hour_beside_the_requests(
    memory: Installation, operator: Caller, database: Database, tmp_path: Path
) -> None:
    outcome, key = await api_keys.create(memory, operator, tenant="ann", service="robot", scopes=["memory:read"])
    door = authenticator(memory, tmp_path)
    who = await door.caller({"x-api-key": str(key)}, "r-1")
    assert (who.tenant, who.service, who.auth, set(who.scopes)) == ("ann", "robot", "api-key", {"memory:read"})
    look = "SELECT last_used_at = date_trunc('hour', last_used_at), xmin::text FROM api_keys"
    ((before, version),) = rows(database("postgres"), look)
    assert before is None
    await door.note_uses()
    ((after, changed),) = rows(database("postgres"), look)
    assert after is True
    assert changed != version
    await api_keys.note_uses(memory.postgres, [uuid.UUID(outcome.answer["apiKeyId"])])
    (listed,) = await api_keys.list_keys(memory.postgres, "ann")
    assert listed["lastUsedAt"] is not None
    # Of an hour that is past it is written again.
    rows(database("postgres"), "UPDATE api_keys SET last_used_at = last_used_at - interval '1 day'")
    await authenticator(memory, tmp_path).note_uses()  # which saw nobody
    (listed,) = await api_keys.list_keys(memory.postgres, "ann")
    yesterday = listed["lastUsedAt"]
    await api_keys.note_uses(memory.postgres, [uuid.UUID(outcome.answer["apiKeyId"])])
    (listed,) = await api_keys.list_keys(memory.postgres, "ann")
    assert listed["lastUsedAt"] > yesterday


async def test_a_key_ends_when_it_says_and_a_hand_that_moves_the_end_is_named(
    memory: Installation, operator: Caller, database: Database, tmp_path: Path
) -> None:
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    _, key = await api_keys.create(
        memory, operator, tenant="ann", service="robot", scopes=["memory:read"], expires_at=ends
    )
    assert (await api_keys.find_caller(memory.postgres, str(key), ends.timestamp() - 1))[2] == ends.timestamp()
    with pytest.raises(Unauthenticated, match="not valid here"):
        await api_keys.find_caller(memory.postgres, str(key), ends.timestamp())
    judge = audit.verify_live
    root = trust_root.load((tmp_path / "trust-root.json").read_bytes())
    assert judge(database("postgres"), root, pinned=True).findings == ()
    rows(database("postgres"), "UPDATE api_keys SET expires_at = NULL, scopes = '{admin}'")
    (found,) = judge(database("postgres"), root, pinned=True).findings
    assert (found.code, found.found) == ("LOG_TABLE_MISMATCH", "other: scopes, expires_at")


async def test_the_first_admin_is_made_once(memory: Installation, operator: Caller, database: Database) -> None:
    facts = {"tenant": "default", "service": "admin", "scopes": ["admin"], "first": True}
    await api_keys.create(memory, operator, tenant="default", service="robot", scopes=["memory:read"])
    outcome, key = await api_keys.create(memory, operator, **facts)  # type: ignore[arg-type]
    assert key is not None
    await api_keys.revoke(memory, operator, "default", uuid.UUID(outcome.answer["apiKeyId"]), "lost")
    before = rows(database("postgres"), "SELECT count(*) FROM audit_events")
    with pytest.raises(PolicyRefused, match="had an API key with the scope admin before"):
        await api_keys.create(memory, operator, **facts)  # type: ignore[arg-type]
    assert rows(database("postgres"), "SELECT count(*) FROM audit_events") == before


async def test_every_process_refuses_within_five_seconds(
    memory: Installation, operator: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key, a token, a service and a tenant that are refused, at the doors of two processes that both know them."""
    key_path = tmp_path / "keys" / "jwt.pem"
    sent: dict[str, dict[str, str]] = {}
    ids = {}
    for tenant in ("key", "token", "service", "tenant", "kept"):
        outcome, key = await api_keys.create(memory, operator, tenant=tenant, service="robot", scopes=["memory:read"])
        ids[tenant] = uuid.UUID(outcome.answer["apiKeyId"])
        sent[tenant] = {"x-api-key": str(key)}
    token = tokens.issue(key_path, "robot", "token", ["memory:read"], 600)
    sent["token"] = {"authorization": f"Bearer {token}"}
    doors = [authenticator(memory, tmp_path) for _ in range(2)]
    now = time.time()
    monkeypatch.setattr("memory_layer.api.auth.time.time", lambda: now)
    for door in doors:
        assert [(await door.caller(headers, "r")).tenant for headers in sent.values()] == list(sent)
    await api_keys.revoke(memory, operator, "key", ids["key"], "lost")
    await principals.revoke_token(
        memory, operator, "token", str(jwt.decode(token, options={"verify_signature": False})["jti"]), "lost"
    )
    await principals.revoke(memory, operator, "service", "robot", "lost")
    await tenants.revoke(memory, operator, "tenant", "gone")
    now += 4.5  # the oldest that anything known is believed
    for door in doors:
        refused = {}
        for name, headers in sent.items():
            try:
                await door.caller(headers, "r")
            except MemoryLayerError as error:
                refused[name] = error.status
        assert refused == {"key": 401, "token": 401, "service": 401, "tenant": 403}


async def test_the_first_admin_in_production_comes_from_a_command(
    database: Database, tmp_path: Path, kms: KmsServer
) -> None:
    """Where tokens are not issued, and a key in no file signs."""
    kms.make(alias="alias/seal")
    dsn = database("memory_app")
    sealed = {"audit_kms_key_id": "alias/seal", "kms_endpoint": kms.url, "service_env": "prod"}
    async with running_memory(dsn, tmp_path, **sealed) as memory:
        await bind_principals(memory)
    settings = {name.upper(): value for name, value in sealed.items()} | {"DATABASE_URL": dsn}
    environment = clean_environment() | settings
    words = ("bootstrap", "--data", str(tmp_path), "--json")
    refused = run_ctl("token", "issue", "--service", "x", "--data", str(tmp_path), env=environment)
    made, again = (run_ctl(*words, env=environment) for _ in range(2))
    assert (refused.returncode, made.returncode, again.returncode) == (4, 0, 4), made.stderr + again.stderr
    (key,) = json.loads(made.stdout)["keys"]
    async with running_memory(dsn, tmp_path, **sealed) as memory:
        who, _, _ = await api_keys.find_caller(memory.postgres, key["key"], time.time())
    assert (who.tenant, who.service, set(who.scopes)) == ("default", "admin", {"admin"})
