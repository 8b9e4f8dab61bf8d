"""What every signer does: signs what it is given, under the key that it names, and opens no key that others could copy."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import stat
import threading
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from memory_layer import config
from memory_layer.audit.seal import verify_signature
from memory_layer.errors import PolicyRefused, SignerUnavailable, UsageError
from memory_layer.ops.durable_files import ensure_key
from memory_layer.stores.protocols import Signer
from memory_layer.stores.signers.local import open_local_signer
from tests.support.key_services import assert_no_secrets, kms_settings, opened_signers, vault_settings
from tests.support.kms_server import running_kms
from tests.support.vault_server import running_vault

# KMS signs 1 to 4,096 bytes with an Ed25519 key; a seal text has fewer than 1,000.
MESSAGES = [b"m", b"memory-layer/audit-seal/v1\n", bytes(range(256)), b"x" * 4096]

KINDS = ["local", "kms P-256", "kms RSA", "kms Ed25519", "vault ed25519", "vault ecdsa", "vault rsa"]
SPECS = {"P-256": "ECC_NIST_P256", "RSA": "RSA_2048", "Ed25519": "ECC_NIST_EDWARDS25519",
         "ed25519": "ed25519", "ecdsa": "ecdsa-p256", "rsa": "rsa-2048"}  # fmt: skip


# A key in a file has nothing between itself and its user that could fail.
over_a_network = pytest.mark.parametrize("opened", KINDS[1:], indirect=True)


class Opened(NamedTuple):
    """A signer, and the service that it talks to (None: the key is a file)."""

    signer: Signer
    service: Any


@pytest.fixture(params=KINDS)
async def opened(
    request: pytest.FixtureRequest, tmp_path: Path, aws: None, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Opened]:
    caplog.set_level(logging.INFO)
    service, _, kind = request.param.partition(" ")
    with contextlib.ExitStack() as stack:
        server: Any = None
        if service == "kms":
            server = stack.enter_context(running_kms())
            settings = kms_settings(server, server.make(SPECS[kind]).arn)
        elif service == "vault":
            server = stack.enter_context(running_vault())
            server.make(kind=SPECS[kind])
            settings = vault_settings(server)
        else:
            settings = config.load({})
            ensure_key(tmp_path / "keys" / "seal.pem")
        async with opened_signers(settings, tmp_path) as signers:
            assert len(signers) == 1
            yield Opened(signers[0], server)
    assert_no_secrets(caplog.text)


@pytest.fixture
def signer(opened: Opened) -> Signer:
    return opened.signer


def verifies(signer: Signer, message: bytes, signature: bytes) -> bool:
    return verify_signature(signer.algorithm, signer.public_key_der, message, signature)


@pytest.mark.parametrize("message", MESSAGES, ids=len)
async def test_its_signatures_verify_under_its_public_key(signer: Signer, message: bytes) -> None:
    signature = await signer.sign(message)
    assert verifies(signer, message, signature)
    assert not verifies(signer, message + b"\n", signature)
    assert not verifies(signer, message, bytes([signature[0] ^ 1]) + signature[1:])


async def test_many_signatures_are_each_in_the_strict_form(signer: Signer) -> None:
    """Every second ECDSA signature of a service has s in the upper half, and is another's valid spelling of the lower one."""
    for number in range(20):
        message = b"text %d" % number
        assert verifies(signer, message, await signer.sign(message))


async def test_its_key_id_is_the_hash_of_its_public_key(signer: Signer) -> None:
    assert signer.key_id == hashlib.sha256(signer.public_key_der).hexdigest()
    key = load_der_public_key(signer.public_key_der)
    assert key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == signer.public_key_der
    assert signer.algorithm in ("ed25519", "ecdsa-p256-sha256", "rsa-pss-sha256")


async def test_another_key_does_not_verify(signer: Signer, tmp_path: Path) -> None:
    ensure_key(tmp_path / "other.pem")
    other = open_local_signer(tmp_path / "other.pem")
    assert other.key_id != signer.key_id
    assert not verify_signature(other.algorithm, other.public_key_der, b"text", await signer.sign(b"text"))


async def test_sixty_four_at_once(opened: Opened) -> None:
    messages = [b"text %d" % number for number in range(64)]
    signatures = await asyncio.gather(*(opened.signer.sign(message) for message in messages))
    assert all(
        verifies(opened.signer, message, signature) for message, signature in zip(messages, signatures, strict=True)
    )


async def test_the_event_loop_goes_on_while_it_signs(opened: Opened) -> None:
    if opened.service is not None:
        opened.service.delay = 0.2
    stood: list[float] = []
    while len(stood) < 5 and min(stood, default=1) >= 0.15:  # one of them undisturbed by the machine
        longest, last = 0.0, time.monotonic()
        work = asyncio.create_task(opened.signer.sign(b"text"))
        while not work.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert verifies(opened.signer, b"text", await work)
        stood.append(longest)
    assert min(stood) < 0.15


FAULTS = {
    "hang": "did not answer",
    "torn": "cannot be reached|failed|understood",
    "garbage": "understood|failed",
    "500": "answered 500|it failed",
    "throttle": "throttles|limits",
    "wrong signature": "does not verify|understood",
    "another key": "does not verify",
}


@over_a_network
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_signer_unavailable_in_time_and_over_when_it_is(opened: Opened, fault: str) -> None:
    opened.service.set_fault(fault)
    started = time.monotonic()
    with pytest.raises(SignerUnavailable, match=FAULTS[fault]) as raised:
        await opened.signer.sign(b"text")
    assert time.monotonic() - started < 10  # signing gives up after 2 s; boto3 would wait for a minute
    assert raised.value.retryable
    assert raised.value.__cause__ is None
    assert "Nothing was written" in raised.value.message
    assert_no_secrets("".join(traceback.format_exception(raised.value)))
    opened.service.set_fault(None)
    assert verifies(opened.signer, b"text", await opened.signer.sign(b"text"))


@over_a_network
async def test_sixty_four_that_hang_do_not_hold_up_the_next(opened: Opened) -> None:
    opened.service.set_fault("hang")
    started = time.monotonic()
    found = await asyncio.gather(*(opened.signer.sign(b"text") for _ in range(64)), return_exceptions=True)
    assert time.monotonic() - started < 10  # signing gives up after 2 s; boto3 would wait for a minute
    assert {type(error) for error in found} == {SignerUnavailable}
    opened.service.set_fault(None)
    assert verifies(opened.signer, b"text", await opened.signer.sign(b"text"))


@over_a_network
@pytest.mark.parametrize("fault", ["torn", "500", "throttle"])
async def test_a_fault_that_strikes_once_is_not_noticed(opened: Opened, fault: str) -> None:
    opened.service.set_fault(fault, times=1)
    assert verifies(opened.signer, b"text", await opened.signer.sign(b"text"))
    assert len([call for call in opened.service.calls if "ign" in call]) == 2


@over_a_network
async def test_a_service_that_goes_away_and_comes_back(opened: Opened) -> None:
    await opened.signer.sign(b"text")
    port = opened.service.server_address[1]
    opened.service.stop()
    with pytest.raises(SignerUnavailable, match="cannot be reached"):
        await opened.signer.sign(b"text")
    again = type(opened.service)(port)
    again.__dict__.update({name: value for name, value in vars(opened.service).items() if name in STATE})
    again.start()
    try:
        assert verifies(opened.signer, b"text", await opened.signer.sign(b"text"))
    finally:
        again.stop()


STATE = ("keys", "aliases", "mounts", "tokens")


async def test_it_closes_twice_and_signs_no_more(opened: Opened) -> None:
    await opened.signer.sign(b"text")
    await opened.signer.close()
    await opened.signer.close()
    if opened.service is not None:
        with pytest.raises(SignerUnavailable, match="closed"):
            await opened.signer.sign(b"text")
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith(("KMS", "Vault_"))] == []


@over_a_network
async def test_closing_while_it_signs_leaves_nobody_hanging(opened: Opened) -> None:
    opened.service.delay = 0.05
    waiting = [asyncio.create_task(opened.signer.sign(b"text")) for _ in range(30)]
    await asyncio.sleep(0.02)
    await opened.signer.close()
    found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)
    assert {type(answer) for answer in found} <= {bytes, SignerUnavailable}


# --- local: a key in a file


def test_the_key_file_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "seal.pem"
    mask = os.umask(0)
    try:
        ensure_key(path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["seal.pem"]
    before = path.read_bytes()
    ensure_key(path)
    assert path.read_bytes() == before


def test_starts_at_the_same_moment_make_one_key(tmp_path: Path) -> None:
    path = tmp_path / "seal.pem"
    seen: list[bytes] = []

    def start() -> None:
        ensure_key(path)
        seen.append(path.read_bytes())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(seen) == 8
    assert set(seen) == {path.read_bytes()}
    assert [file.name for file in tmp_path.iterdir()] == ["seal.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o620, 0o601])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "seal.pem"
    ensure_key(path)
    path.chmod(mode)
    with pytest.raises(PolicyRefused, match=f"mode {mode:04o}.*chmod 600"):
        open_local_signer(path)
    path.chmod(0o400)
    open_local_signer(path)


def test_no_key_is_a_clear_word(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no signing key at"):
        open_local_signer(tmp_path / "seal.pem")


def private_pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    lock = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


@pytest.mark.parametrize(
    "content",
    [
        private_pem(ec.generate_private_key(ec.SECP256R1())),
        private_pem(ed25519.Ed25519PrivateKey.generate(), b"secret"),
        ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        bytes(range(256)),
    ],
    ids=["another curve", "locked by a password", "a public key", "empty", "broken", "binary"],
)
def test_a_file_that_holds_no_such_key_is_a_clear_word(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "seal.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="holds no Ed25519 private key"):
        open_local_signer(path)
