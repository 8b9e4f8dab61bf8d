"""What is KMS's or Vault's own: which keys are taken, what each refusal says, logins, renewal, versions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from memory_layer import config
from memory_layer.audit.seal import verify_signature
from memory_layer.errors import MemoryLayerError, PolicyRefused, SignerUnavailable, UsageError, ValidationError
from memory_layer.stores.signers import kms as kms_module
from memory_layer.stores.signers import open_signers
from memory_layer.stores.signers import vault as vault_module
from tests.support import kms_server, vault_server
from tests.support.key_services import assert_no_secrets, kms_settings, opened_signers, vault_settings
from tests.support.kms_server import KmsServer
from tests.support.vault_server import VaultServer

NOWHERE = Path("/nowhere")


async def refused(settings: config.Settings, kind: type[MemoryLayerError], said: str) -> None:
    """Opening fails with these words, in time, and leaves no thread and no secret behind."""
    started = time.monotonic()
    with pytest.raises(kind, match=said) as raised:
        await open_signers(settings, NOWHERE)
    assert time.monotonic() - started < 10  # a service has 2 s; boto3 would wait for a minute
    assert_no_secrets("".join(traceback.format_exception(raised.value)))


# --- who signs


def test_the_settings_say_who_signs() -> None:
    assert config.load({}).signer == "local"
    assert config.load({"AUDIT_KMS_KEY_ID": "alias/x"}).signer == "kms"
    assert config.load({"AUDIT_VAULT_KEY": "x"}).signer == "vault"
    both = {"AUDIT_KMS_KEY_ID": "alias/x", "AUDIT_VAULT_KEY": "x"}
    assert config.load(both | {"AUDIT_SIGNER": "local"}).signer == "local"
    with pytest.raises(UsageError, match="AUDIT_SIGNER=kms or AUDIT_SIGNER=vault"):
        _ = config.load(both).signer


async def test_local_keys_besides_the_current_one_follow_it(tmp_path: Path) -> None:
    from memory_layer.ops.durable_files import ensure_key

    for name in ("seal-2026.pem", "seal.pem", "seal-2025.pem"):
        ensure_key(tmp_path / "keys" / name)
    async with opened_signers(config.load({}), tmp_path) as signers:
        found = [signer.key_id for signer in signers]
    from memory_layer.stores.signers.local import open_local_signer

    names = ("seal.pem", "seal-2025.pem", "seal-2026.pem")
    assert found == [open_local_signer(tmp_path / "keys" / name).key_id for name in names]


@pytest.mark.parametrize(("library", "signer", "extra"), [("boto3", "kms", "kms"), ("hvac", "vault", "vault")])
async def test_a_missing_library_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, library: str, signer: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    settings = config.load({}, audit_signer=signer, vault_addr="http://127.0.0.1:1", vault_token="t")
    await refused(settings, UsageError, rf"needs {library}.*\[server,{extra}\]")


@pytest.mark.parametrize(
    "url", ["kms", "ftp://kms", "http://", "http://[", "http://x:y", "https://u:p@kms", "http://k?x"]
)
async def test_a_url_that_is_none(aws: None, url: str) -> None:
    await refused(config.load({}, audit_signer="kms", kms_endpoint=url), UsageError, "KMS_ENDPOINT")
    settings = config.load({}, audit_signer="vault", vault_addr=url, vault_token="t")
    await refused(settings, UsageError, "VAULT_ADDR")


@pytest.mark.parametrize("guard", [{"service_env": "prod"}, {"require_kms": True}])
async def test_nothing_crosses_the_network_in_the_clear_where_that_is_guarded(
    kms: KmsServer, guard: dict[str, object]
) -> None:
    settings = config.load({}, audit_signer="vault", vault_addr="http://vault:8200", vault_token="t", **guard)
    await refused(settings, PolicyRefused, "VAULT_ADDR begins with http://")
    settings = config.load({}, audit_kms_key_id="alias/x", kms_endpoint="http://10.0.0.1", **guard)
    await refused(settings, PolicyRefused, "KMS_ENDPOINT begins with http://")
    key = kms.make()
    async with opened_signers(kms_settings(kms, key.arn, **guard)) as signers:  # loopback is not the network
        assert len(signers) == 1


# --- KMS


async def test_kms_keys_keep_the_order_of_the_setting(kms: KmsServer) -> None:
    old, new = kms.make(), kms.make("RSA_2048", alias="alias/new")
    async with opened_signers(kms_settings(kms, f"alias/new, {old.id},")) as signers:
        assert [signer.algorithm for signer in signers] == ["rsa-pss-sha256", "ecdsa-p256-sha256"]
        await signers[1].close()  # one that is closed does not take the other's connection along
        assert verify_signature(signers[0].algorithm, signers[0].public_key_der, b"t", await signers[0].sign(b"t"))
    assert new.id in kms.keys


async def test_kms_without_a_key_id_uses_the_provisioned_alias(kms: KmsServer) -> None:
    kms.make(alias="alias/memory-layer-audit-staging")
    async with opened_signers(kms_settings(kms, None, service_env="staging")) as signers:
        await signers[0].sign(b"text")


async def test_a_kms_that_knows_the_spec_by_its_older_name(kms: KmsServer) -> None:
    """As servers that play KMS do."""
    kms.old = True
    async with opened_signers(kms_settings(kms, kms.make().arn)) as signers:
        assert signers[0].algorithm == "ecdsa-p256-sha256"
        assert await signers[0].sign(b"text")


async def test_a_moved_alias_does_not_change_who_signs(kms: KmsServer) -> None:
    kms.make(alias="alias/seal")
    async with opened_signers(kms_settings(kms, "alias/seal")) as signers:
        kms.aliases["alias/seal"] = kms.make().id
        assert verify_signature(signers[0].algorithm, signers[0].public_key_der, b"t", await signers[0].sign(b"t"))
        async with opened_signers(kms_settings(kms, "alias/seal")) as again:
            assert again[0].key_id != signers[0].key_id


@pytest.mark.parametrize(
    ("spec", "usage", "said"),
    [
        ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "not made for signatures"),
        ("RSA_2048", "ENCRYPT_DECRYPT", "KeyUsage ENCRYPT_DECRYPT"),
        ("ECC_NIST_P384", "SIGN_VERIFY", "KeySpec ECC_NIST_P384"),
    ],
)
async def test_a_kms_key_that_makes_no_seals(kms: KmsServer, spec: str, usage: str, said: str) -> None:
    await refused(kms_settings(kms, kms.make(spec, usage).arn), UsageError, said)


def breaks_kms() -> Iterator[Any]:
    def state(name: str) -> Callable[[KmsServer, pytest.MonkeyPatch], None]:
        return lambda server, _: [setattr(key, "state", name) for key in server.keys.values()] and None

    def environment(**values: str) -> Callable[[KmsServer, pytest.MonkeyPatch], None]:
        return lambda _, monkeypatch: [monkeypatch.setenv(k, v) for k, v in values.items()] and None

    def without(*names: str) -> Callable[[KmsServer, pytest.MonkeyPatch], None]:
        return lambda _, monkeypatch: [monkeypatch.delenv(name) for name in names] and None

    def skewed(seconds: float) -> Callable[[KmsServer, pytest.MonkeyPatch], None]:
        return lambda server, _: setattr(server, "skew", seconds)

    yield pytest.param(state("Disabled"), UsageError, "key is disabled", id="disabled")
    yield pytest.param(state("PendingDeletion"), UsageError, "waiting to be deleted", id="being deleted")
    yield pytest.param(lambda server, _: server.keys.clear(), UsageError, "no such key", id="unknown key")
    denied = "may not. Signing needs kms:GetPublicKey and kms:Sign"
    yield pytest.param(lambda server, _: server.denied.add("GetPublicKey"), UsageError, denied, id="denied")
    yield pytest.param(environment(AWS_ACCESS_KEY_ID="AKIAOTHER"), UsageError, "does not know the access key", id="key")
    wrong = environment(AWS_SECRET_ACCESS_KEY="another")
    yield pytest.param(wrong, UsageError, "Check AWS_SECRET_ACCESS_KEY", id="wrong secret")
    both = without("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    yield pytest.param(both, UsageError, "no AWS credentials", id="no credentials")
    yield pytest.param(without("AWS_SECRET_ACCESS_KEY"), UsageError, "no AWS credentials", id="half of them")
    yield pytest.param(environment(AWS_PROFILE="nobody"), UsageError, "AWS_PROFILE names no profile", id="profile")
    yield pytest.param(without("AWS_DEFAULT_REGION"), UsageError, "Set KMS_REGION", id="no region")
    yield pytest.param(skewed(400), SignerUnavailable, "clocks.*TIME_SKEW", id="late")
    yield pytest.param(skewed(-400), SignerUnavailable, "clocks.*TIME_SKEW", id="early")
    yield pytest.param(lambda server, _: server.stop(), SignerUnavailable, "cannot be reached", id="down")


@pytest.mark.parametrize(("wreck", "kind", "said"), list(breaks_kms()))
async def test_what_kms_refuses_at_start(
    kms: KmsServer, monkeypatch: pytest.MonkeyPatch, wreck: Any, kind: type[MemoryLayerError], said: str
) -> None:
    kms.make(alias="alias/seal")
    wreck(kms, monkeypatch)
    await refused(kms_settings(kms, "alias/seal"), kind, said)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("AccessDeniedException", "may not"),
        ("DisabledException", "key is disabled"),
        ("KMSInvalidStateException", "no state to sign"),
        ("ExpiredTokenException", "credentials have expired"),
        ("KeyUnavailableException", "not available"),
        ("SomeNewException", "answered 400 SomeNewException"),
    ],
)
async def test_in_flight_every_refusal_is_signer_unavailable(kms: KmsServer, code: str, said: str) -> None:
    async with opened_signers(kms_settings(kms, kms.make().arn)) as signers:
        kms.set_fault(code)
        with pytest.raises(SignerUnavailable, match=said) as raised:
            await signers[0].sign(b"text")
        assert_no_secrets("".join(traceback.format_exception(raised.value)))
        kms.set_fault(None)
        await signers[0].sign(b"text")


async def test_kms_signs_no_long_text_with_an_ed25519_key(kms: KmsServer) -> None:
    async with opened_signers(kms_settings(kms, kms.make("ECC_NIST_EDWARDS25519").arn)) as signers:
        with pytest.raises(ValidationError, match="4096 bytes"):
            await signers[0].sign(b"x" * 4097)


async def test_only_the_hash_goes_to_kms_but_for_ed25519(kms: KmsServer) -> None:
    async with opened_signers(kms_settings(kms, kms.make().arn)) as signers:
        signature = await signers[0].sign(b"x" * 100_000)  # KMS itself would take 4,096 bytes
        assert verify_signature("ecdsa-p256-sha256", signers[0].public_key_der, b"x" * 100_000, signature)


def test_the_region_is_the_settings_then_the_keys(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    arn = f"arn:aws:kms:ap-south-1:{kms_server.ACCOUNT}:key/1"
    assert kms_module.connect(config.load({}, audit_kms_key_id=arn)).meta.region_name == "ap-south-1"
    assert kms_module.connect(config.load({}, audit_kms_key_id=arn, kms_region="x-1")).meta.region_name == "x-1"
    client = kms_module.connect(config.load({}, audit_kms_key_id="alias/x"))
    assert client.meta.region_name == kms_server.REGION
    assert client.meta.endpoint_url == f"https://kms.{kms_server.REGION}.amazonaws.com"


def test_another_kms_agrees(aws: None) -> None:
    """moto's KMS is somebody else's reading of the same interface. It signs no digests, so that it cannot seal."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: no second KMS to compare with")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = kms_module.connect(config.load({}, kms_endpoint=url))
        key = client.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
        public = client.get_public_key(KeyId=key)["PublicKey"]
        answer = client.sign(KeyId=key, Message=b"text", MessageType="RAW", SigningAlgorithm="ECDSA_SHA_256")
        raw = kms_module.ecdsa_raw(answer["Signature"])
        assert verify_signature("ecdsa-p256-sha256", public, b"text", raw)
    finally:
        server.stop()


# --- Vault


def approle(server: VaultServer, **more: object) -> config.Settings:
    login = {"vault_token": None, "vault_role_id": vault_server.ROLE_ID, "vault_secret_id": vault_server.SECRET_ID}
    return vault_settings(server, **login | more)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-p256", "rsa-2048"])
async def test_each_version_of_a_vault_key_is_a_signer_newest_first(vault: VaultServer, kind: str) -> None:
    key = vault.make(kind=kind)
    key.versions += [vault_server.generate(kind), vault_server.generate(kind)]
    async with opened_signers(vault_settings(vault)) as signers:
        assert len({signer.key_id for signer in signers}) == 3
        for signer in signers:
            assert verify_signature(signer.algorithm, signer.public_key_der, b"t", await signer.sign(b"t"))
        newest = signers[0].key_id
    key.min_encryption_version = 3
    async with opened_signers(vault_settings(vault)) as signers:
        assert [signer.key_id for signer in signers] == [newest]


def breaks_vault() -> Iterator[Any]:
    def change(**facts: object) -> Callable[[VaultServer], None]:
        return lambda server: vars(server.mounts["transit"][vault_server.KEY]).update(facts)

    yield pytest.param(lambda server: setattr(server, "sealed", True), SignerUnavailable, "sealed", id="sealed")
    yield pytest.param(lambda server: server.mounts.clear(), UsageError, "VAULT_TRANSIT_MOUNT", id="no mount")
    yield pytest.param(lambda server: server.mounts["transit"].clear(), UsageError, "no key memory-layer", id="no key")
    yield pytest.param(lambda server: server.tokens.clear(), UsageError, "permission denied", id="unknown token")
    yield pytest.param(lambda server: server.denied.add("transit/keys"), UsageError, "policy lacks read", id="denied")
    yield pytest.param(change(type="aes256-gcm96", versions=[None]), UsageError, "aes256-gcm96", id="does not sign")
    yield pytest.param(change(derived=True), UsageError, "derived", id="derived")
    yield pytest.param(change(min_encryption_version=9), UsageError, "no version", id="no version")
    yield pytest.param(lambda server: server.stop(), SignerUnavailable, "cannot be reached", id="down")


@pytest.mark.parametrize(("wreck", "kind", "said"), list(breaks_vault()))
async def test_what_vault_refuses_at_start(
    vault: VaultServer, wreck: Any, kind: type[MemoryLayerError], said: str
) -> None:
    vault.make()
    wreck(vault)
    await refused(vault_settings(vault), kind, said)


@pytest.mark.parametrize(
    ("login", "said"),
    [
        ({}, "needs a login"),
        ({"vault_role_id": "r"}, "VAULT_ROLE_ID needs VAULT_SECRET_ID"),
        ({"vault_role_id": "r", "vault_secret_id": "s"}, "does not accept the role"),
        ({"vault_k8s_role": "r"}, "serviceaccount/token cannot be read"),
        ({"vault_addr": None, "vault_token": "t"}, "needs VAULT_ADDR"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
async def test_a_vault_login_that_cannot_be(vault: VaultServer, login: dict[str, Any], said: str) -> None:
    vault.make()
    facts = {"audit_signer": "vault", "vault_addr": vault.url} | login
    await refused(config.load({}, **facts), UsageError, said)


@pytest.mark.parametrize("fault", ["forbidden", "sealed"])
async def test_what_vault_refuses_in_flight(vault: VaultServer, fault: str) -> None:
    vault.make()
    async with opened_signers(vault_settings(vault)) as signers:
        vault.set_fault(fault)
        with pytest.raises(SignerUnavailable, match=r"permission denied|sealed") as raised:
            await signers[0].sign(b"text")
        assert_no_secrets("".join(traceback.format_exception(raised.value)))
        vault.set_fault(None)
        await signers[0].sign(b"text")


async def test_a_token_is_renewed_before_it_ends(vault: VaultServer) -> None:
    vault.make()
    token = vault.issue(0.6)
    async with opened_signers(vault_settings(vault, vault_token=token)) as signers:
        await until(lambda: vault.calls.count("POST auth/token/renew-self") >= 3)
        await signers[0].sign(b"text")
    assert token in vault.tokens  # it was given to us, and is not ours to revoke


async def test_a_login_of_our_own_is_renewed_replaced_and_given_back(vault: VaultServer) -> None:
    vault.make()
    vault.token_ttl, vault.token_max_ttl = 0.6, 1.2
    async with opened_signers(approle(vault)) as signers:
        await until(lambda: vault.calls.count("POST auth/approle/login") >= 2)
        await signers[0].sign(b"text")
    assert "POST auth/token/revoke-self" in vault.calls
    alive = [name for name, token in vault.tokens.items() if token.ends is None or token.ends > time.monotonic()]
    assert len(alive) <= 2  # the root token, and perhaps one that was replaced a moment ago


async def test_a_revoked_login_is_made_again_at_the_next_signature(
    vault: VaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault_module, "FIRST_LOOK", 0.0)
    vault.make()
    async with opened_signers(approle(vault)) as signers:
        for name in set(vault.tokens) - {vault_server.ROOT_TOKEN}:
            del vault.tokens[name]
        found = await asyncio.gather(*(signers[0].sign(b"text") for _ in range(8)))
        assert len(found) == 8


async def test_a_renewal_that_fails_is_tried_again(
    vault: VaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(vault_module, "FIRST_LOOK", 0.1)
    vault.make()
    vault.token_ttl = 1.0
    async with opened_signers(approle(vault)) as signers:
        vault.sealed = True
        await until(lambda: "did not renew the token: it is sealed" in caplog.text)
        vault.sealed = False
        asked = len(vault.calls)
        await until(lambda: "POST auth/token/renew-self" in vault.calls[asked:])
        await signers[0].sign(b"text")
    assert_no_secrets(caplog.text)


async def test_the_kubernetes_login(vault: VaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = tmp_path / "token"
    account.write_text(vault_server.K8S_JWT + "\n")
    monkeypatch.setattr(vault_module, "SERVICE_ACCOUNT", account)
    vault.make()
    async with opened_signers(vault_settings(vault, vault_token=None, vault_k8s_role="memory-layer")) as signers:
        await signers[0].sign(b"text")
    await refused(vault_settings(vault, vault_token=None, vault_k8s_role="other"), UsageError, "permission denied")


@pytest.mark.parametrize("flag", ["exportable", "allow_plaintext_backup"])
async def test_a_key_that_vault_hands_out_is_refused_where_that_is_guarded(
    vault: VaultServer, caplog: pytest.LogCaptureFixture, flag: str
) -> None:
    vault.make(**{flag: True})
    vault.make("memory-layer-audit-prod", **{flag: True})
    async with opened_signers(vault_settings(vault)):
        assert f"{flag} set: it can be copied" in caplog.text
    await refused(vault_settings(vault, service_env="prod"), PolicyRefused, f"{flag}.*SERVICE_ENV=prod")
    await refused(vault_settings(vault, require_kms=True), PolicyRefused, f"{flag}.*REQUIRE_KMS")


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not come about"
        await asyncio.sleep(0.02)


# --- the stand-ins in a process of their own


@pytest.mark.parametrize("name", ["kms_server", "vault_server"])
async def test_a_stand_in_keeps_its_keys_over_a_kill(aws: None, tmp_path: Path, name: str) -> None:
    keys = []
    for _ in range(2):
        with stand_in_process(name, "--delay-ms", "30", "--state", str(tmp_path / "state.json")) as url:
            if name == "kms_server":
                settings = config.load({}, audit_signer="kms", kms_endpoint=url)
            else:
                settings = config.load({}, audit_signer="vault", vault_addr=url, vault_token=vault_server.ROOT_TOKEN)
            async with opened_signers(settings) as signers:
                started = time.monotonic()
                await signers[0].sign(b"text")
                assert time.monotonic() - started >= 0.03
                async with httpx2.AsyncClient() as client:
                    answer = await client.post(f"{url}/_control", json={"fault": "500", "delayMs": 0})
                assert answer.json()["delayMs"] == 0
                with pytest.raises(SignerUnavailable):
                    await signers[0].sign(b"text")
                keys.append(hashlib.sha256(signers[0].public_key_der).hexdigest())
    assert keys[0] == keys[1]


@contextlib.contextmanager
def stand_in_process(name: str, *words: str) -> Iterator[str]:
    command = [sys.executable, "-m", f"tests.support.{name}", *words]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=dict(os.environ)) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()
