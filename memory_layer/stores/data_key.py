"""The key that wraps the keys of people's payloads: a file of this machine, or one that only KMS or Vault can open (DATA_KEY_ID)."""

from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from memory_layer.config import Settings
from memory_layer.errors import SignerUnavailable, UsageError
from memory_layer.stores.remote.aws import called
from memory_layer.stores.remote.faults import Fault, translated
from memory_layer.stores.remote.threads import READ

KEY_BYTES: Final = 32
CONTEXT: Final = {"memory-layer": "data-key"}  # KMS opens it for nothing else
ASSOCIATED: Final = base64.b64encode(b"memory-layer/data-key/v1").decode("ascii")  # the same for Vault
VAULT: Final = "vault:"  # what DATA_KEY_ID begins with where it names a key of Vault


class _Service(NamedTuple):
    """``file``: what ``encrypt`` makes of the key lies there."""

    file: str
    encrypt: Callable[[bytes], bytes]
    decrypt: Callable[[bytes], bytes]


def load_data_key(settings: Settings, folder: Path, keep: Callable[[Path, bytes], None] | None) -> bytes:
    """The key of this data folder: ``keys/data.key`` holds it, or with DATA_KEY_ID ``keys/data.key.kms`` or ``keys/data.key.vault`` what
    KMS or Vault made of it.

    ``keep`` writes a file durably unless it is there: with it the key is made where there is none. Raises UsageError without one,
    SignerUnavailable where the service does not answer or may not be asked, PolicyRefused where its key can be copied.
    """
    with _service(settings) as service:
        path = folder / "keys" / service.file
        if keep is not None and not path.exists():
            keep(path, service.encrypt(secrets.token_bytes(KEY_BYTES)))
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read: {error.strerror}. It wraps the keys of archived payloads; name the data folder that the archive "
                "was made with (--data), or bring the file back from its backup."
            ) from None
        key = service.decrypt(content)
    if len(key) != KEY_BYTES:
        raise UsageError(f"{path} is no key of {KEY_BYTES} bytes. Bring it back from its backup.")
    return key


@contextlib.contextmanager
def _service(settings: Settings) -> Iterator[_Service]:
    name = settings.data_key_id
    if name is None:
        yield _Service("data.key", lambda key: key, lambda key: key)
    elif name.startswith(VAULT):
        with _vault(settings, name.removeprefix(VAULT)) as service:
            yield service
    else:
        yield _Service(
            "data.key.kms",
            lambda key: _ask_kms(settings, "encrypt", "CiphertextBlob", Plaintext=key),
            lambda content: _ask_kms(settings, "decrypt", "Plaintext", CiphertextBlob=content),
        )


def _ask_kms(settings: Settings, verb: str, member: str, **facts: Any) -> bytes:
    from memory_layer.stores.signers.kms import KMS, connect

    def refused(fault: Fault) -> SignerUnavailable:
        return SignerUnavailable(
            f"KMS did not {verb} the data key with DATA_KEY_ID {settings.data_key_id}: {fault.text}. It needs kms:Encrypt and kms:Decrypt "
            "on that key."
        )

    client = connect(settings)
    ask = partial(getattr(client, verb), KeyId=settings.data_key_id, EncryptionContext=CONTEXT, **facts)
    try:
        return bytes(called(KMS, ask, refused)[member])
    finally:
        client.close()


@contextlib.contextmanager
def _vault(settings: Settings, name: str) -> Iterator[_Service]:
    """Vault's transit engine, logged in. It needs ``read`` on ``<mount>/keys/<key>``, ``update`` on ``encrypt`` and ``decrypt``.

    https://developer.hashicorp.com/vault/api-docs/secret/transit#encrypt-data
    """
    from memory_layer.stores.signers import vault

    mount = settings.vault_transit_mount
    client = vault.connect(settings, READ, "DATA_KEY_ID=vault:...")
    session = vault.Session(client, settings)

    def ask(what: str, call: Callable[[], Any]) -> Any:
        from hvac.exceptions import VaultError
        from requests import RequestException

        def refused(error: Exception) -> SignerUnavailable:
            return SignerUnavailable(
                f"Vault did not {what} with DATA_KEY_ID {VAULT}{name}: {vault.explain(error).text}. It needs read on {mount}/keys/{name}, "
                f"and update on {mount}/encrypt/{name} and {mount}/decrypt/{name}."
            )

        return translated(call, (VaultError, RequestException, OSError), refused)

    about = {"associated_data": ASSOCIATED, "mount_point": mount}

    def encrypt(key: bytes) -> bytes:
        given = base64.b64encode(key).decode("ascii")
        answer = ask("encrypt the data key", lambda: transit.encrypt_data(name, plaintext=given, **about))
        return str(answer["data"]["ciphertext"]).encode("ascii")

    def decrypt(content: bytes) -> bytes:
        given = content.decode("ascii", "replace").strip()
        answer = ask("decrypt the data key", lambda: transit.decrypt_data(name, ciphertext=given, **about))
        return base64.b64decode(answer["data"]["plaintext"])

    try:
        ask("accept the login", session.start)
        transit = client.secrets.transit
        found = ask("describe its key", lambda: vault.read_key(session, mount, name))
        # Asked first: to encrypt with a key that is not there would make one, where the policy lets it.
        if found is None or not found.get("supports_encryption") or found.get("derived"):
            what = "has no such key" if found is None else f"has {name} of type {found['type']}, which does not encrypt"
            raise UsageError(
                f"DATA_KEY_ID is {VAULT}{name}, and Vault's transit engine at {mount}/ {what}. Make one of type aes256-gcm96, not derived, "
                f"or check VAULT_TRANSIT_MOUNT: vault write -f {mount}/keys/{name}"
            )
        vault.guard(settings, mount, name, found, "DATA_KEY_ID", "read what was archived")
        yield _Service("data.key.vault", encrypt, decrypt)
    finally:
        session.close()
