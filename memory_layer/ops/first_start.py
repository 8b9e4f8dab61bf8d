"""What a first start makes and every later one checks: keys, the log's name, the trust root."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from memory_layer import private
from memory_layer.audit import trust_root
from memory_layer.audit.origin import origin
from memory_layer.config import Settings
from memory_layer.errors import PolicyRefused, UsageError
from memory_layer.ops import tokens
from memory_layer.ops.durable_files import ensure_key, write_once
from memory_layer.ops.seal_keys import write_trust_root
from memory_layer.stores.logs import TRUST_ROOT, HeldLog, held_logs, open_log, read_trust_root
from memory_layer.stores.signers import local_keys, open_checkpoint_signer, open_signers
from memory_layer.stores.signers.local import open_local_signer
from memory_layer.stores.token_keys import TokenKeys, open_token_keys
from memory_layer.telemetry.logs import get_logger

log = get_logger("memory_layer.ops")


@dataclass(frozen=True, slots=True)
class OpenedLog:
    """The evidence side of an installation: which log it writes, and what an auditor pins."""

    log: int
    origin: str
    trust_root: Path
    digest: str


def ensure_keys(data: Path, signer: str = "local") -> None:
    """The signing key (unless KMS or Vault signs), the key for exports' manifests and the token key, each made once, mode 0600, in a
    folder of mode 0700."""
    keys = data / "keys"
    private.make_folder(keys)
    if signer == "local" and not local_keys(keys):
        ensure_key(keys / "seal.pem")
    ensure_key(keys / "manifest.pem")
    ensure_key(keys / "jwt.pem")


async def start_log(settings: Settings, data: Path, dsn: str, owner: str | None = None) -> OpenedLog:
    """Open the log and its trust root; raises PolicyRefused when key, log and trust root do not belong together.

    ``owner``: the DSN of the role that owns the tables, which alone may open the first log of a database; unset: ``dsn``. Raises
    LogNotOpen where there is no log and that role may not open one.
    """
    signers = await open_signers(settings, data)
    for opened in signers:
        await opened.close()
    signer = signers[0]
    path = data / TRUST_ROOT
    log, name, sealed_by = await _own_log(settings, path, dsn, owner or dsn, signer.key_id)
    if sealed_by not in {key.key_id for key in signers}:
        raise PolicyRefused(
            f"The log {name} in this database is sealed by the key {sealed_by[:16]}..., and this server has another "
            f"({signer.key_id[:16]}...): nothing that it signs would verify. Use the data folder (--data) or the AUDIT_KMS_KEY_ID "
            "that the log is sealed with, or another database."
        )
    if not path.exists():
        keys = [trust_root.trusted_key(signer.algorithm, signer.public_key_der), _checkpoint_key(data)]
        keys += _manifest_key(data)
        write_once(path, trust_root.dump(name, keys), 0o644)
    known = read_trust_root(data)
    if known.origin != name:  # made by another process meanwhile
        raise _other_log(path, known.origin, name)
    if sealed_by not in {key.key_id for key in known.keys if key.purpose == "seal"}:
        raise PolicyRefused(
            f"The key {sealed_by[:16]}... that seals the log is not in {path}: nothing that it signs would verify. Put back the "
            "trust root that belongs to the log, or finish a rotation that was cut off with `memoryctl rotate signing-key`."
        )
    known = _complete(known, data)
    publisher = open_checkpoint_signer(data)  # absent where this machine publishes nothing
    if publisher is not None and publisher.key_id not in {k.key_id for k in known.keys if k.purpose == "checkpoint"}:
        raise PolicyRefused(
            f"The key for checkpoints {data / 'keys' / 'checkpoint.pem'} is not in {path}: nobody would believe what it signs. Put "
            "back the one that belongs to the log, or take it away: then this machine publishes no checkpoints."
        )
    return OpenedLog(log, name, path, known.digest)


async def _own_log(settings: Settings, path: Path, dsn: str, owner: str, key_id: str) -> HeldLog:
    """The log that the trust root names; without a trust root the only one that the database holds, opened where it holds none."""
    logs = await held_logs(dsn)
    known = _named_log(path)
    if known is not None:
        own = next((log for log in logs if log.origin == known), None)
        if own is None:
            raise _other_log(path, known, ", ".join(log.origin for log in logs) or "no log")
        return own
    if not logs:
        host = settings.audit_origin or f"memory-{secrets.token_hex(6)}"
        logs = await open_log(owner, origin(host, settings.service_env, 1), key_id)
    if len(logs) != 1:
        raise PolicyRefused(
            f"This database holds the logs {', '.join(log.origin for log in logs)}, and {path} is not there to say which one is this "
            "installation's. Copy it from the data folder that the log was started with."
        )
    return logs[0]


def _named_log(path: Path) -> str | None:
    return read_trust_root(path.parent).origin if path.exists() else None


def _other_log(path: Path, known: str, found: str) -> PolicyRefused:
    return PolicyRefused(
        f"{path} is for the log {known}, but the database keeps {found}. Give this database the data folder it "
        "was first started with (--data), or this data folder its own database."
    )


def _checkpoint_key(data: Path) -> trust_root.TrustedKey:
    """The key for checkpoints, one of its own beside seal.pem; made unless it is there."""
    ensure_key(data / "keys" / "checkpoint.pem")
    signer = open_checkpoint_signer(data)
    assert signer is not None  # noqa: S101 - narrows the type
    return trust_root.trusted_key(signer.algorithm, signer.public_key_der, "checkpoint")


def _complete(known: trust_root.TrustRoot, data: Path) -> trust_root.TrustRoot:
    """The trust root of an installation from before there were checkpoints and exports, with their keys: its next version."""
    purposes = {key.purpose for key in known.keys}
    added = [] if "checkpoint" in purposes else [_checkpoint_key(data)]
    added += [] if "manifest" in purposes else _manifest_key(data)
    if not added:
        return known
    root = write_trust_root(data, known, [*known.keys, *added])
    log.warning(
        "the trust root has a new version that names more keys. Pin its new digest; the one before goes on to verify entries and seals",
        path=str(data / "trust-root.json"),
        version=root.version,
        keys=[key.purpose for key in added],
        digest=f"sha256:{root.digest}",
        before=f"sha256:{known.digest}",
    )
    return root


def _manifest_key(data: Path) -> list[trust_root.TrustedKey]:
    """The key that signs the manifests of exports, where this machine has one."""
    path = data / "keys" / "manifest.pem"
    return (
        [trust_root.trusted_key("ed25519", open_local_signer(path).public_key_der, "manifest")] if path.exists() else []
    )


def check_settings(settings: Settings) -> None:
    """What can be checked before anything is started. Raises PolicyRefused and UsageError."""
    from memory_layer.ops import prod_guard
    from memory_layer.stores import objects

    prod_guard.refuse(settings, objects.check)


def token_keys(settings: Settings, data: Path) -> TokenKeys:
    """What bearer tokens are checked with. Raises UsageError and PolicyRefused."""

    def own() -> str:
        path = data / "keys" / "jwt.pem"
        if not path.exists():
            raise UsageError(
                f"There is no token key at {path}. Set JWT_JWKS_URL or JWT_PUBLIC_KEY, or start once with `memoryctl up`."
            )
        return tokens.public_key_pem(path)

    return open_token_keys(settings, own)
