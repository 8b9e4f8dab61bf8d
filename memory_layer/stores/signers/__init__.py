"""Signers: one Protocol (``stores/protocols.py``), one contract suite (``tests/contract/test_signers.py``)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from memory_layer.config import Settings
from memory_layer.errors import UsageError
from memory_layer.stores.protocols import Signer


async def open_signers(settings: Settings, data: Path) -> list[Signer]:
    """Every key that this process may seal with, the one that the settings put first in front; never empty.

    local: ``data/keys/seal.pem``, then ``seal-*.pem``; after a rotation there is no ``seal.pem``. kms: the keys that
    AUDIT_KMS_KEY_ID names. vault: the versions of the transit key, newest first. Asks the service for the public keys, so that a wrong setting shows here and not at the first
    write. Raises UsageError, PolicyRefused or, for what may pass by itself, SignerUnavailable. The caller closes them all.
    """
    kind = settings.signer
    if kind == "kms":
        from memory_layer.stores.signers.kms import open_kms_signers

        return await open_kms_signers(settings)
    if kind == "vault":
        from memory_layer.stores.signers.vault import open_vault_signers

        return await open_vault_signers(settings)
    return await asyncio.to_thread(_local, data / "keys")


def open_checkpoint_signer(data: Path) -> Signer | None:
    """The key for checkpoints, ``data/keys/checkpoint.pem``; None where there is none: then this process publishes nothing."""
    from memory_layer.stores.signers.local import open_local_signer

    path = data / "keys" / "checkpoint.pem"
    return open_local_signer(path) if path.exists() else None


def local_keys(keys: Path) -> list[Path]:
    """The files of the keys in this folder that seal. The name of the first key's is ``seal.pem``."""
    first = keys / "seal.pem"
    return [*([first] if first.exists() else []), *sorted(keys.glob("seal-*.pem"))]


def _local(keys: Path) -> list[Signer]:
    from memory_layer.stores.signers.local import open_local_signer

    opened: list[Signer] = []
    for path in local_keys(keys):
        try:
            opened.append(open_local_signer(path))
        except UsageError:
            if path.exists():  # else a rotation has just put it away
                raise
    return opened or [open_local_signer(keys / "seal.pem")]
