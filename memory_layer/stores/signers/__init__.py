"""Signers: one Protocol (``stores/protocols.py``), one contract suite (``tests/contract/test_signers.py``)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from memory_layer.config import Settings
from memory_layer.stores.protocols import Signer


async def open_signers(settings: Settings, data: Path) -> list[Signer]:
    """Every key that this process may seal with, the one that the settings put first in front; never empty.

    local: ``data/keys/seal.pem``, then ``seal-*.pem``. kms: the keys that AUDIT_KMS_KEY_ID names. vault: the versions of the
    transit key, newest first. Asks the service for the public keys, so that a wrong setting shows here and not at the first
    write. Raises UsageError, PolicyRefused or, for what may pass by itself, SignerUnavailable. Whoever opens closes them all.
    """
    kind = settings.signer
    if kind == "kms":
        from memory_layer.stores.signers.kms import open_kms_signers

        return await open_kms_signers(settings)
    if kind == "vault":
        from memory_layer.stores.signers.vault import open_vault_signers

        return await open_vault_signers(settings)
    return await asyncio.to_thread(_local, data / "keys")


def _local(keys: Path) -> list[Signer]:
    from memory_layer.stores.signers.local import open_local_signer

    return [open_local_signer(path) for path in (keys / "seal.pem", *sorted(keys.glob("seal-*.pem")))]
