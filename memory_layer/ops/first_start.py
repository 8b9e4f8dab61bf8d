"""What a first start makes and every later one checks: keys, the log's name, the trust root."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from memory_layer.audit import trust_root
from memory_layer.audit.origin import origin
from memory_layer.config import Settings
from memory_layer.errors import PolicyRefused, UsageError
from memory_layer.ops import tokens
from memory_layer.ops.keys import ensure_key, write_once
from memory_layer.stores.log_writer import open_log
from memory_layer.stores.signers import open_signers


@dataclass(frozen=True, slots=True)
class Installation:
    """The evidence side of an installation: which log it writes, and what an auditor pins."""

    log: int
    origin: str
    trust_root: Path
    digest: str


def ensure_keys(data: Path) -> None:
    """The signing key and the token key, each made once, mode 0600, in a folder of mode 0700."""
    keys = data / "keys"
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    ensure_key(keys / "seal.pem")
    ensure_key(keys / "jwt.pem")


async def open_installation(settings: Settings, data: Path, dsn: str) -> Installation:
    """Open the log and its trust root; raises PolicyRefused when key, log and trust root do not belong together."""
    signers = await open_signers(settings, data)
    for opened in signers:
        await opened.close()
    signer = signers[0]
    path = data / "trust-root.json"
    host = settings.audit_origin or f"memory-{secrets.token_hex(6)}"
    log, name, sealed_by = await open_log(dsn, origin(host, settings.service_env, 1), signer.key_id)
    if sealed_by not in {key.key_id for key in signers}:
        raise PolicyRefused(
            f"The log {name} in this database is sealed by the key {sealed_by[:16]}..., and this server has another "
            f"({signer.key_id[:16]}...): nothing that it signs would verify. Use the data folder (--data) or the AUDIT_KMS_KEY_ID "
            "that the log is sealed with, or another database."
        )
    if not path.exists():
        root = trust_root.dump(name, [trust_root.trusted_key(signer.algorithm, signer.public_key_der)])
        write_once(path, root, 0o644)
    known = trust_root.load(path.read_bytes())
    if known.origin != name:
        raise PolicyRefused(
            f"{path} speaks for the log {known.origin}, but the database keeps {name}. Give this database the data folder it "
            "was first started with (--data), or this data folder its own database."
        )
    if sealed_by not in {key.key_id for key in known.keys if key.purpose == "seal"}:
        raise PolicyRefused(
            f"The key {sealed_by[:16]}... that seals the log is not in {path}: nothing that it signs would verify. Put back the "
            "trust root that belongs to the log, or finish a rotation that was cut off with `memoryctl rotate signing-key`."
        )
    return Installation(log, name, path, known.digest)


def refuse_in_prod(settings: Settings) -> None:
    """A key in a file is no signer for production. Raises PolicyRefused."""
    if settings.guarded and settings.signer == "local":
        raise PolicyRefused(
            f"{settings.guarded} needs a signer whose key no one can copy, and this server signs with a key in a file "
            "(AUDIT_SIGNER=local). Set AUDIT_KMS_KEY_ID (AWS KMS) or AUDIT_VAULT_KEY (Vault transit); `memoryctl provision apply "
            "keys` makes the key. Or use SERVICE_ENV=dev or staging, without REQUIRE_KMS, here."
        )


def public_key(settings: Settings, data: Path) -> str:
    """The PEM key that bearer tokens are checked with."""
    if settings.jwt_public_key:
        _demand_public_key(settings.jwt_public_key)
        return settings.jwt_public_key
    path = data / "keys" / "jwt.pem"
    if not path.exists():
        raise UsageError(f"There is no token key at {path}. Set JWT_PUBLIC_KEY, or start once with `memoryctl up`.")
    return tokens.public_key_pem(path)


def _demand_public_key(pem: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode())
    except ValueError:
        key = None
    if not isinstance(key, (ed25519.Ed25519PublicKey, ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
        raise UsageError(
            "JWT_PUBLIC_KEY holds no public key in PEM form (Ed25519, P-256 or RSA, -----BEGIN PUBLIC KEY-----). Set the key of "
            "the issuer of your tokens, or unset it to use the data folder's own."
        )
