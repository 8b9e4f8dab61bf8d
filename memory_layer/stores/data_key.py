"""The key that wraps the keys of people's payloads: a file of this machine, or one that only KMS can open (DATA_KEY_ID)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from memory_layer.config import Settings
from memory_layer.errors import SignerUnavailable, UsageError

KEY_BYTES: Final = 32
CONTEXT: Final = {"memory-layer": "data-key"}  # KMS opens it for nothing else


def load_data_key(settings: Settings, folder: Path, keep: Callable[[Path, bytes], None] | None) -> bytes:
    """The key of this data folder: ``keys/data.key`` holds it, or with DATA_KEY_ID ``keys/data.key.kms`` what KMS made of it.

    ``keep`` writes a file durably unless it is there: with it the key is made where there is none. Raises UsageError without one,
    SignerUnavailable where KMS does not answer or may not be asked.
    """
    kms = settings.data_key_id is not None
    path = folder / "keys" / ("data.key.kms" if kms else "data.key")
    if keep is not None and not path.exists():
        fresh = secrets.token_bytes(KEY_BYTES)
        keep(path, _ask(settings, "encrypt", "CiphertextBlob", Plaintext=fresh) if kms else fresh)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. It wraps the keys of archived payloads; name the data folder that the archive "
            "was made with (--data), or bring the file back from its backup."
        ) from None
    key = _ask(settings, "decrypt", "Plaintext", CiphertextBlob=content) if kms else content
    if len(key) != KEY_BYTES:
        raise UsageError(f"{path} is no key of {KEY_BYTES} bytes. Bring it back from its backup.")
    return key


def _ask(settings: Settings, verb: str, member: str, **facts: Any) -> bytes:
    from memory_layer.stores.signers.kms import connect, explain

    client = connect(settings)
    try:
        answer = getattr(client, verb)(KeyId=settings.data_key_id, EncryptionContext=CONTEXT, **facts)
    except Exception as error:
        from botocore.exceptions import BotoCoreError, ClientError

        if not isinstance(error, (BotoCoreError, ClientError)):
            raise
        raise SignerUnavailable(
            f"KMS did not {verb} the data key with DATA_KEY_ID {settings.data_key_id}: {explain(error).text}. It needs kms:Encrypt and "
            "kms:Decrypt on that key."
        ) from error
    finally:
        client.close()
    return bytes(answer[member])
