"""Data keys: one for each person, and one for each tenant's payloads that concern no person. Erasure destroys them, and with them what was archived.

They lie in ``subjects``, wrapped by a key of the installation: AES-256-GCM, 12 bytes of nonce first, with the handle as associated data,
so that no row's key passes for another's. What they encrypt: ``audit/segment.py``.
"""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash

from memory_layer.audit.segment import KEY_BYTES, Sealed, decrypt_payload
from memory_layer.config import Settings
from memory_layer.errors import PolicyRefused
from memory_layer.model import SYSTEM_TENANT, uuid7
from memory_layer.ops.durable_files import write_once
from memory_layer.sql import queries
from memory_layer.stores.data_key import load_data_key
from memory_layer.stores.postgres import ALL_TENANTS, Postgres, open_postgres

NOBODY: Final = ""  # the "subject" of a tenant's own key
_NONCE: Final = 12

_SQL = queries("archive")

Person = tuple[str, str]
"""A tenant and a subject of its."""


@dataclass(frozen=True, slots=True)
class WrappingKey:
    """The installation's own (``stores/data_key.py``). ``id``, from its hash, stands beside what it wrapped."""

    id: str
    key: bytes = field(repr=False)

    def wrap(self, handle: uuid.UUID, data_key: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(self.key).encrypt(nonce, data_key, handle.bytes)

    def unwrap(self, handle: uuid.UUID, wrapped: bytes) -> bytes:
        """Raises PolicyRefused when it was wrapped by another key, or changed."""
        try:
            return AESGCM(self.key).decrypt(wrapped[:_NONCE], wrapped[_NONCE:], handle.bytes)
        except (InvalidTag, ValueError):
            raise PolicyRefused(
                f"The data key {handle} cannot be unwrapped with this installation's key: its row was changed, or keys/data.key was."
            ) from None


def open_wrapping_key(settings: Settings, data: Path, *, make: bool) -> WrappingKey:
    """The key of this data folder; ``make``: where there is none yet. Raises UsageError without one, SignerUnavailable (KMS)."""
    key = load_data_key(settings, data, _keep if make else None)
    digest = Hash(SHA256())
    digest.update(b"memory-layer/data-key/v1\0" + key)
    return WrappingKey(f"data-key:{digest.finalize().hex()[:32]}", key)


def _keep(path: Path, content: bytes) -> None:
    write_once(path, content, 0o600)


class DataKeys:
    """The data keys of one run, as they are needed. ``get`` makes those that there are not."""

    def __init__(self, postgres: Postgres, wrapping: WrappingKey) -> None:
        self._postgres, self._wrapping = postgres, wrapping
        self._known: dict[Person, tuple[uuid.UUID, bytes] | None] = {}

    @property
    def wrapping_id(self) -> str:
        return self._wrapping.id

    async def get(self, wanted: Iterable[Person]) -> dict[Person, tuple[uuid.UUID, bytes] | None]:
        """(handle, key) of each; None of a person who was erased, for whom no key is made again."""
        missing = sorted({person for person in wanted if person not in self._known})
        if missing:
            found = await self._read(missing)
            new = [person for person in missing if person not in found or found[person]["wrapped_key"] is None]
            new = [person for person in new if person not in found or not found[person]["erased"]]
            for tenant in sorted({tenant for tenant, _ in new}):
                await self._make(tenant, [subject for of, subject in new if of == tenant])
            if new:
                found |= await self._read(new)
            for person in missing:
                self._known[person] = self._unwrapped(found[person])
        return self._known

    async def _read(self, people: Sequence[Person]) -> dict[Person, dict[str, Any]]:
        facts = {"tenants": [tenant for tenant, _ in people], "subjects": [subject for _, subject in people]}
        (rows,) = await self._postgres.fetch(ALL_TENANTS, (_SQL["subject_keys"], facts))
        return {(row["tenant"], row["subject"]): row for row in rows}

    async def _make(self, tenant: str, subjects: list[str]) -> None:
        """Durable before anything is encrypted with them, hence by tenant."""
        handles = [uuid7() for _ in subjects]
        wrapped = [self._wrapping.wrap(handle, secrets.token_bytes(KEY_BYTES)) for handle in handles]
        # Where a row without a key is there already it has another handle: that one is bound to the key.
        known = await self._read([(tenant, subject) for subject in subjects])
        for place, subject in enumerate(subjects):
            if (tenant, subject) in known:
                handles[place] = known[tenant, subject]["handle"]
                wrapped[place] = self._wrapping.wrap(handles[place], secrets.token_bytes(KEY_BYTES))
        facts = {
            "tenants": [tenant] * len(subjects),
            "subjects": subjects,
            "handles": handles,
            "wrapped": wrapped,
            "key_id": self._wrapping.id,
        }
        await self._postgres.run(tenant, (_SQL["add_subject_keys"], facts))

    def _unwrapped(self, row: dict[str, Any]) -> tuple[uuid.UUID, bytes] | None:
        if row["erased"] or row["wrapped_key"] is None:
            return None
        handle: uuid.UUID = row["handle"]
        if row["key_id"] != self._wrapping.id:
            raise PolicyRefused(
                f"The data key {handle} was wrapped by {row['key_id']}, and this data folder has {self._wrapping.id}. "
                "Use the keys/data.key that the archive was begun with."
            )
        return handle, self._wrapping.unwrap(handle, bytes(row["wrapped_key"]))


def people_of(tenant: str | None, subjects: Iterable[str]) -> list[Person]:
    """Whose keys a payload is encrypted with: those of everybody whom it concerns; the tenant's where it concerns nobody."""
    of = tenant if tenant is not None else SYSTEM_TENANT
    named = sorted(set(subjects))
    return [(of, subject) for subject in named] if named else [(of, NOBODY)]


class Opener:
    """Decrypts payloads of an archive with the keys that an installation still has; None for those that were destroyed."""

    def __init__(self, origin: str, keys: dict[uuid.UUID, bytes]) -> None:
        self._origin, self._keys = origin, keys

    def __call__(self, commitment: str, sealed: Sealed) -> tuple[bytes, bytes] | None:
        keys = [self._keys[handle] for handle in sealed.keys if handle in self._keys]
        return decrypt_payload(self._origin, commitment, sealed, keys) if len(keys) == len(sealed.keys) else None


async def read_keys(dsn: str, wrapping: WrappingKey, origin: str) -> Opener:
    """With every key that this installation holds."""
    postgres = await open_postgres(dsn, size=1)
    try:
        (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["all_keys"], {"key_id": wrapping.id}))
    finally:
        await postgres.close()
    keys = {row["handle"]: wrapping.unwrap(row["handle"], bytes(row["wrapped_key"])) for row in rows}
    return Opener(origin, keys)
