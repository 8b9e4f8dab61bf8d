"""Production starts with no key that can be copied; a log sealed by KMS or Vault is a log like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memory_layer import config
from memory_layer.errors import PolicyRefused, SignerUnavailable
from memory_layer.ops import prod_guard
from memory_layer.service.commit import Change, Outcome
from memory_layer.service.installation import Installation
from tests.support.key_services import assert_no_secrets
from tests.support.kms_server import KmsServer
from tests.support.product import run_ctl
from tests.support.service import caller, create, new_node, rows, running_memory, verify
from tests.support.vault_server import KEY, ROOT_TOKEN, VaultServer

Database = Callable[[str], str]

# --- the guard


@pytest.mark.parametrize("guard", [{"SERVICE_ENV": "prod"}, {"REQUIRE_KMS": "true"}], ids=str)
@pytest.mark.parametrize("command", ["up", "serve", "worker"])
def test_a_key_in_a_file_is_refused_where_that_is_guarded(tmp_path: Path, command: str, guard: dict[str, str]) -> None:
    data = tmp_path / "data"
    environment = guard | {"DATABASE_URL": "postgresql://memory_app@127.0.0.1:1/memory"}
    ended = run_ctl(command, "--data", str(data), env=environment, timeout=60)
    assert ended.returncode == 4, ended.stderr
    assert ended.stdout == ""
    assert "AUDIT_KMS_KEY_ID" in ended.stderr
    assert "AUDIT_VAULT_KEY" in ended.stderr
    assert not data.exists()


@pytest.mark.parametrize("signer", [{"audit_kms_key_id": "alias/x"}, {"audit_vault_key": "x"}, {"audit_signer": "kms"}])
@pytest.mark.parametrize("guard", [{"service_env": "prod"}, {"require_kms": True}])
def test_kms_and_vault_pass_the_guard(guard: dict[str, Any], signer: dict[str, Any]) -> None:
    prod_guard.refuse_copied_key(config.load({}, **guard, **signer))
    with pytest.raises(PolicyRefused):
        prod_guard.refuse_copied_key(config.load({}, **guard, **signer | {"audit_signer": "local"}))


def test_without_a_guard_anything_passes() -> None:
    prod_guard.refuse_copied_key(config.load({}))


# --- a log that is sealed elsewhere


@pytest.fixture(params=["kms P-256", "kms RSA", "kms Ed25519", "vault"])
def sealed_by(request: pytest.FixtureRequest, aws: None) -> Iterator[tuple[Any, dict[str, object]]]:
    """The service that signs, and the settings that say so."""
    service, _, kind = request.param.partition(" ")
    if service == "kms":
        kms: KmsServer = request.getfixturevalue("kms")
        spec = {"P-256": "ECC_NIST_P256", "RSA": "RSA_2048", "Ed25519": "ECC_NIST_EDWARDS25519"}[kind]
        kms.make(spec, alias="alias/seal")
        yield kms, {"audit_kms_key_id": "alias/seal", "kms_endpoint": kms.url, "service_env": "staging"}
    else:
        vault: VaultServer = request.getfixturevalue("vault")
        vault.make()
        yield vault, {"audit_vault_key": KEY, "vault_addr": vault.url, "vault_token": ROOT_TOKEN}


async def write(memory: Installation, count: int) -> list[Outcome | BaseException]:
    changes = (Change(caller(), new_node(content=f"text {number}")) for number in range(count))
    submitted = asyncio.gather(*(memory.committer.submit(change) for change in changes), return_exceptions=True)
    return await asyncio.wait_for(submitted, 60)


async def test_what_kms_or_vault_seals_verifies(
    database: Database, tmp_path: Path, sealed_by: tuple[Any, dict[str, object]]
) -> None:
    _, settings = sealed_by
    async with running_memory(database("memory_app"), tmp_path, **settings) as memory:
        for _ in range(3):
            assert {type(outcome) for outcome in await write(memory, 20)} == {Outcome}
    verdict = verify(database("postgres"), tmp_path)
    assert verdict.findings == ()
    assert verdict.exit_code == 10
    algorithms = {"ECC_NIST_P256": "ecdsa-p256-sha256", "RSA_2048": "rsa-pss-sha256"}
    (found,) = rows(database("postgres"), "SELECT count(*), min(algorithm), max(algorithm) FROM audit_seals")
    kms_spec = next((key.spec for key in getattr(sealed_by[0], "keys", {}).values()), "")
    assert found[0] >= 3
    assert found[1] == found[2] == algorithms.get(kms_spec, "ed25519")
    # The next start, in another process, goes on with the same key.
    async with running_memory(database("memory_app"), tmp_path, **settings) as memory:
        await create(memory)
    assert verify(database("postgres"), tmp_path).findings == ()


@pytest.mark.parametrize("fault", ["500", "torn", "wrong signature", "another key", "hang"])
async def test_a_signer_that_fails_in_flight_leaves_nothing(
    database: Database, tmp_path: Path, kms: KmsServer, fault: str
) -> None:
    kms.make(alias="alias/seal")
    settings = {"audit_kms_key_id": "alias/seal", "kms_endpoint": kms.url}
    counted = (
        "SELECT (SELECT count(*) FROM memory_nodes), (SELECT count(*) FROM audit_events), (SELECT count(*) FROM audit_seals),"
        " (SELECT count(*) FROM memory_vectors), (SELECT count(*) FROM audit_payloads)"
    )
    async with running_memory(database("memory_app"), tmp_path, **settings) as memory:
        assert {type(outcome) for outcome in await write(memory, 5)} == {Outcome}
        before = rows(database("postgres"), counted)
        kms.set_fault(fault)
        failed = await write(memory, 10)
        assert {type(error) for error in failed} == {SignerUnavailable}
        for error in failed:
            assert isinstance(error, SignerUnavailable)
            assert (error.status, error.retryable) == (503, True)
            assert_no_secrets(str(error))
        assert rows(database("postgres"), counted) == before
        kms.set_fault(None)
        assert {type(outcome) for outcome in await write(memory, 10)} == {Outcome}
    assert verify(database("postgres"), tmp_path).findings == ()


async def test_the_log_does_not_take_another_key_silently(database: Database, tmp_path: Path, kms: KmsServer) -> None:
    kms.make(alias="alias/seal")
    settings = {"audit_kms_key_id": "alias/seal", "kms_endpoint": kms.url}
    async with running_memory(database("memory_app"), tmp_path, **settings) as memory:
        await create(memory)
    kms.aliases["alias/seal"] = kms.make().id
    with pytest.raises(PolicyRefused, match="sealed by the key"):
        async with running_memory(database("memory_app"), tmp_path, **settings):
            pass
    for local in ({"audit_signer": "local"}, {}):
        with pytest.raises(PolicyRefused, match="sealed by the key"):
            async with running_memory(database("memory_app"), tmp_path, **local):
                pass
