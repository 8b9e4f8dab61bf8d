"""The keys that seal a log: which this machine can open, what the database says of them, and the file that says whose seals count."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from memory_layer.audit.log_end import prove_activation
from memory_layer.audit.trust_root import TrustedKey, TrustRoot, dump, load, parse_retirement
from memory_layer.config import Settings
from memory_layer.errors import MemoryLayerError, PolicyRefused, ValidationError
from memory_layer.ops.durable_files import write_once, write_over
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.logs import TRUST_ROOT, read_trust_root
from memory_layer.stores.postgres import ALL_TENANTS, Postgres, Query
from memory_layer.stores.protocols import Signer
from memory_layer.stores.signers import local_keys, open_signers
from memory_layer.stores.signers.local import open_local_signer

_SQL = queries("keys")


class Held(NamedTuple):
    """A key that this machine can seal with. ``name``: for people, as the settings or Vault call it, or a file."""

    kind: str
    name: str
    signer: Signer

    @property
    def key_id(self) -> str:
        return self.signer.key_id


class Epoch(NamedTuple):
    """The entries from ``from_seq`` on are sealed by this key, up to the next epoch."""

    key_id: str
    from_seq: int


@dataclass(frozen=True, slots=True)
class Log:
    """What the database says of the keys. ``epochs``: oldest first, never empty. ``retired``: the key before the newest one."""

    origin: str
    last_seq: int  # -1: no entry yet
    epochs: tuple[Epoch, ...]
    activation: dict[str, Any] | None  # the newest: entry, payload and seal
    retired: str | None

    @property
    def current(self) -> Epoch:
        return self.epochs[-1]


@contextlib.asynccontextmanager
async def held_keys(installation: Installation) -> AsyncIterator[list[Held]]:
    """Every key in reach. Raises what opening them raises, and PolicyRefused where the trust root's log is not there."""
    settings, folder = installation.settings, installation.folder
    await installation.need("postgres")
    held: list[Held] = []
    try:
        log = await read_log(installation.postgres, read_trust_root(folder).origin)
        # The settings say where the log is to be sealed. When its key is not there, it comes from elsewhere: a file, another service.
        for kind in (settings.signer, *_elsewhere(settings)):
            if kind in (settings.signer, "local") or not any(key.key_id == log.current.key_id for key in held):
                held += await _held(settings, folder, kind)
        yield held
    finally:
        for key in held:
            await key.signer.close()


def _elsewhere(settings: Settings) -> list[str]:
    named = {"local": True, "kms": bool(settings.audit_kms_key_id), "vault": bool(settings.audit_vault_key)}
    return [kind for kind, there in named.items() if there and kind != settings.signer]


async def _held(settings: Settings, folder: Path, kind: str) -> list[Held]:
    if kind == "local":
        files: list[Held] = []
        for path in local_keys(folder / "keys"):
            # Where another signer is set, a file that is no key or not private is of no use, and no reason to stop.
            with contextlib.suppress(*(() if settings.signer == kind else (MemoryLayerError,))):
                files.append(Held(kind, str(path), open_local_signer(path)))
        return files
    signers = await open_signers(msgspec.structs.replace(settings, audit_signer=kind), folder)
    return [Held(kind, str(getattr(signer, "name", signer.key_id)), signer) for signer in signers]


async def read_log(postgres: Postgres, origin: str) -> Log:
    """The keys of that log, in one snapshot. Raises PolicyRefused where the database does not hold it."""
    questions: list[Query] = [(_SQL[name], {"origin": origin}) for name in ("epochs", "activation", "retirements")]
    epochs, activation, retirements = await postgres.fetch(ALL_TENANTS, *questions)
    if not epochs:
        raise PolicyRefused(
            f"{TRUST_ROOT} is for the log {origin}, which this database does not hold, so there is no key to change. Name the data "
            "folder that the log was started with (--data), or its database."
        )
    retired = None
    with contextlib.suppress(ValidationError):  # one that cannot be read retires nothing
        retired = parse_retirement(bytes(retirements[0]["payload"])).key_id if retirements else None
    return Log(
        epochs[0]["origin"],
        epochs[0]["last_seq"],
        tuple(Epoch(row["key_id"], row["from_seq"]) for row in epochs),
        activation[0] if activation else None,
        retired,
    )


# --- the trust root


def seal_key(root: TrustRoot, key_id: str) -> TrustedKey | None:
    """What the trust root says of a key that seals."""
    return next((key for key in root.keys if key.key_id == key_id and key.purpose == "seal"), None)


def prove(log: Log, old: TrustedKey, new: Signer) -> None:
    """That the old key itself has sealed the activation of the new one, where the database says that it did."""
    from_seq = log.current.from_seq
    row = log.activation or dict.fromkeys(("entry", "salt", "payload", "seal_text", "signature"))
    try:
        key = prove_activation(log.origin, from_seq, old, row)
        if (key.key_id, key.public_key) != (new.key_id, new.public_key_der):
            raise ValidationError("it is of another key")
    except ValidationError as error:
        raise PolicyRefused(
            f"The database says that the key {new.key_id[:16]}... seals from entry {from_seq} on, but nothing proves it: {error.message}. "
            f"{TRUST_ROOT} stays as it is. Find out what happened with `memoryctl audit verify`."
        ) from None


def write_trust_root(folder: Path, root: TrustRoot, keys: Iterable[TrustedKey], origin: str | None = None) -> TrustRoot:
    """The next version of the trust root, durable and whole; the one before stays beside it under its number. ``origin``: of a new log."""
    path = folder / TRUST_ROOT
    before = path.read_bytes()
    kept = folder / f"trust-root.v{root.version}.json"
    if kept.exists() and kept.read_bytes() != before:
        kept = folder / f"trust-root.v{root.version}.{root.digest[:12]}.json"
    write_once(kept, before, 0o644)
    content = dump(origin or root.origin, keys, root.version + 1)
    write_over(path, content, 0o644)
    return load(content)


def files_of(held: list[Held], log: Log) -> list[Path]:
    """Files of keys that have sealed this log and do so no more."""
    before = {epoch.key_id for epoch in log.epochs[:-1]} - {log.current.key_id}
    return [Path(key.name) for key in held if key.kind == "local" and key.key_id in before]
