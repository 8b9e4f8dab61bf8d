"""`memoryctl provision plan / apply keys` against the stand-ins: what is missing is made once, what differs is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memory_layer.cli import main
from memory_layer.stores.signers import open_signers
from tests.support import vault_server
from tests.support.key_services import assert_no_secrets, kms_settings, vault_settings
from tests.support.kms_server import KmsServer
from tests.support.service import rows
from tests.support.vault_server import VaultServer

Run = Callable[..., tuple[int, str, str]]
KMS_ALIAS = "alias/memory-layer-audit-staging"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SERVICE_ENV", "staging")
    monkeypatch.delenv("DATABASE_URL", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["provision", *words])
        out, err = capsys.readouterr()
        assert_no_secrets(out + err)
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def on_kms(kms: KmsServer, monkeypatch: pytest.MonkeyPatch) -> KmsServer:
    monkeypatch.setenv("KMS_ENDPOINT", kms.url)
    return kms


@pytest.fixture
def on_vault(vault: VaultServer, monkeypatch: pytest.MonkeyPatch) -> VaultServer:
    monkeypatch.setenv("VAULT_ADDR", vault.url)
    monkeypatch.setenv("VAULT_TOKEN", vault_server.ROOT_TOKEN)
    return vault


def statuses(out: str) -> dict[str, str]:
    """What each finding says: pass, or missing, or drift."""
    findings = json.loads(out)["findings"]
    return {found["id"]: found["evidence"].get("state", found["status"]) for found in findings}


def changes(server: Any) -> list[str]:
    """The calls that may have changed something."""
    return [call for call in server.calls if call.startswith(("Create", "Tag", "Update", "POST"))]


# --- KMS


def test_a_kms_key_is_planned_made_and_then_there(run: Run, on_kms: KmsServer) -> None:
    code, out, _ = run("plan", "keys", "--signer", "kms", "--json")
    assert code == 1
    assert statuses(out) == {"keys.kms.exists": "missing"}
    assert (on_kms.keys, changes(on_kms)) == ({}, [])

    code, out, err = run("apply", "keys", "--signer", "kms", "--yes")
    assert code == 0
    assert f"with {KMS_ALIAS}" in err
    (key,) = on_kms.keys.values()
    assert (key.spec, key.usage, key.state) == ("ECC_NIST_P256", "SIGN_VERIFY", "Enabled")
    assert on_kms.aliases == {KMS_ALIAS: key.id}
    assert key.tags == {"application": "memory-layer", "purpose": "audit-seal", "service-env": "staging"}

    before = list(changes(on_kms))
    code, out, _ = run("plan", "keys", "--signer", "kms", "--json")
    assert code == 0
    assert set(statuses(out).values()) == {"pass"}
    code, out, _ = run("apply", "keys", "--signer", "kms", "--json")
    assert (code, json.loads(out)["facts"]["made"]) == (0, [])
    assert changes(on_kms) == before


async def test_the_key_that_was_made_signs(run: Run, on_kms: KmsServer) -> None:
    import asyncio

    code, _, _ = await asyncio.to_thread(run, "apply", "keys", "--signer", "kms", "--key-spec", "RSA_2048")
    assert code == 0
    (signer,) = await open_signers(kms_settings(on_kms, None, service_env="staging"), Path("/nowhere"))
    await signer.sign(b"text")
    assert signer.algorithm == "rsa-pss-sha256"
    await signer.close()


def test_a_fault_while_a_key_is_made_makes_no_second_one(run: Run, on_kms: KmsServer) -> None:
    on_kms.denied.add("CreateAlias")
    code, _, err = run("apply", "keys", "--signer", "kms")
    assert code == 2
    assert "kms:CreateAlias" in err
    assert on_kms.calls.count("CreateKey") == 1


def test_tags_that_are_lacking_are_added(run: Run, on_kms: KmsServer) -> None:
    key = on_kms.make(alias=KMS_ALIAS)
    key.tags = {"cost-centre": "7", "service-env": "dev"}
    code, out, _ = run("plan", "keys", "--signer", "kms", "--json")
    assert (code, statuses(out)["keys.kms.tags"]) == (1, "missing")
    assert run("apply", "keys", "--signer", "kms")[0] == 0
    assert key.tags == {
        "application": "memory-layer",
        "purpose": "audit-seal",
        "service-env": "staging",
        "cost-centre": "7",
    }


@pytest.mark.parametrize(
    ("spec", "usage", "state", "wanted", "found"),
    [
        ("ECC_NIST_P256", "SIGN_VERIFY", "Disabled", (), "keys.kms.state"),
        ("RSA_2048", "ENCRYPT_DECRYPT", "Enabled", (), "keys.kms.usage"),
        ("ECC_NIST_P384", "SIGN_VERIFY", "Enabled", (), "keys.kms.spec"),
        ("RSA_2048", "SIGN_VERIFY", "Enabled", ("--key-spec", "ECC_NIST_P256"), "keys.kms.spec"),
    ],
)
def test_what_differs_is_reported_and_left_alone(
    run: Run, on_kms: KmsServer, spec: str, usage: str, state: str, wanted: tuple[str, ...], found: str
) -> None:
    key = on_kms.make(spec, usage, alias=KMS_ALIAS)
    key.state = state
    for verb in ("plan", "apply"):
        code, out, _ = run(verb, "keys", "--signer", "kms", "--json", *wanted)
        assert code == 1
        assert [check for check, status in statuses(out).items() if status == "drift"] == [found]
    assert (list(on_kms.keys.values()), key.state) == ([key], state)


def test_a_key_named_by_its_id_cannot_be_made(run: Run, on_kms: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIT_KMS_KEY_ID", "00000000-0000-0000-0000-000000000000")
    code, out, _ = run("apply", "keys", "--json")
    assert (code, statuses(out)) == (1, {"keys.kms.exists": "drift"})
    assert on_kms.keys == {}


def test_what_was_made_is_written_down(
    run: Run, on_kms: KmsServer, database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database("memory_app"))
    assert run("plan", "keys", "--signer", "kms")[0] == 1
    assert run("apply", "keys", "--signer", "kms")[0] == 0
    found = rows(database("postgres"), "SELECT verb, exit_code, report FROM ops_runs ORDER BY started_at")
    assert [row[:2] for row in found] == [("provision-apply-keys", 0)]  # a plan only reads
    assert KMS_ALIAS in found[0][2]["facts"]["made"][0]


# --- Vault


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-p256"])
def test_a_vault_key_is_planned_made_and_then_there(run: Run, on_vault: VaultServer, kind: str) -> None:
    wanted = () if kind == "ed25519" else ("--key-spec", kind)
    code, out, _ = run("plan", "keys", "--signer", "vault", "--json")
    assert code == 1
    assert statuses(out) == {"keys.vault.mount": "missing", "keys.vault.exists": "missing"}
    assert (on_vault.mounts, changes(on_vault)) == ({}, [])

    assert run("apply", "keys", "--signer", "vault", "--yes", *wanted)[0] == 0
    key = on_vault.mounts["transit"]["memory-layer-audit-staging"]
    assert (key.type, key.exportable, key.allow_plaintext_backup) == (kind, False, False)

    before = list(changes(on_vault))
    for verb in ("plan", "apply"):
        code, out, _ = run(verb, "keys", "--signer", "vault", "--json", *wanted)
        assert (code, set(statuses(out).values())) == (0, {"pass"})
    assert changes(on_vault) == before


async def test_the_vault_key_that_was_made_signs(run: Run, on_vault: VaultServer) -> None:
    import asyncio

    assert (await asyncio.to_thread(run, "apply", "keys", "--signer", "vault"))[0] == 0
    (signer,) = await open_signers(vault_settings(on_vault, service_env="staging"), Path("/nowhere"))
    await signer.sign(b"text")
    await signer.close()


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"exportable": True}, "keys.vault.copies"),
        ({"allow_plaintext_backup": True}, "keys.vault.copies"),
        ({"deletion_allowed": True}, "keys.vault.deletion"),
        ({"kind": "ecdsa-p384"}, "keys.vault.spec"),
        ({"derived": True}, "keys.vault.spec"),
    ],
    ids=str,
)
def test_a_vault_key_that_differs(run: Run, on_vault: VaultServer, facts: dict[str, Any], found: str) -> None:
    on_vault.make("memory-layer-audit-staging", **facts)
    for verb in ("plan", "apply"):
        code, out, _ = run(verb, "keys", "--signer", "vault", "--json")
        assert code == 1
        assert [check for check, status in statuses(out).items() if status == "drift"] == [found]
    assert changes(on_vault) == []


def test_another_engine_at_the_mount_is_left_alone(
    run: Run, on_vault: VaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TRANSIT_MOUNT", "sys")
    code, out, _ = run("apply", "keys", "--signer", "vault", "--json")
    assert (code, statuses(out)) == (1, {"keys.vault.mount": "drift"})
    assert changes(on_vault) == []


# --- the command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "keys"], "--signer kms, or --signer vault"),
        (["plan", "keys", "--signer", "kms", "--key-spec", "ed25519"], "seals are made with ECC_NIST_P256"),
        (["apply", "keys", "--signer", "vault"], "VAULT_ADDR"),
        (["plan", "keys", "--signer", "hsm"], "hsm"),
        (["plan", "castles"], "castles"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_exit_2(run: Run, aws: None, words: list[str], said: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_service_that_is_down_is_exit_3(run: Run, on_kms: KmsServer) -> None:
    on_kms.stop()
    code, out, err = run("plan", "keys", "--signer", "kms")
    assert (code, out) == (3, "")
    assert "cannot be reached" in err


def test_no_is_an_answer(run: Run, on_kms: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: "n\n", raising=False)
    code, _, err = run("apply", "keys", "--signer", "kms")
    assert code == 1
    assert "nothing was made" in err
    assert on_kms.keys == {}
