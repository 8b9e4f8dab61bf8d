"""Bearer tokens for development: JWTs signed with the data folder's own Ed25519 key (RFC 7519, RFC 8037)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from memory_layer.errors import DependencyUnavailable, UsageError
from memory_layer.model import LOG_TEXT, SCOPES, TENANT


def issue(
    key_path: Path,
    service: str,
    tenant: str,
    scopes: Sequence[str],
    ttl: int,
    *,
    issuer: str = "memory-layer",
    audience: str = "memory-layer",
) -> str:
    """A signed token, valid ``ttl`` seconds from now. An unknown scope is a UsageError that lists the known ones."""
    import jwt
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        problem = f"unknown scope {', '.join(unknown)}" if unknown else "a token needs at least one scope"
        raise UsageError(f"{problem}. Known scopes: {' '.join(SCOPES)}.")
    # What the API would refuse in a token is refused here, where the reason can still be given.
    if LOG_TEXT.fullmatch(service) is None:
        raise UsageError("a service is 1 to 128 printable ASCII characters without blanks, quotes and backslashes.")
    if TENANT.fullmatch(tenant) is None:
        raise UsageError("a tenant is 1 to 63 letters, digits and . _ : @ - and begins with a letter or digit.")
    if ttl < 1:
        raise UsageError(f"a token that lives {ttl} seconds is of no use; give a --ttl of 1 or more.")
    try:
        key = load_pem_private_key(key_path.read_bytes(), password=None)
    except OSError as error:
        raise DependencyUnavailable(
            f"the token key {key_path} cannot be read ({error.strerror}). `memoryctl up` makes it at its first start; "
            "name its data folder with --data."
        ) from error
    except ValueError as error:
        raise DependencyUnavailable(f"{key_path} holds no private key in PEM form: {error}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DependencyUnavailable(f"{key_path} holds another kind of key than Ed25519.")
    now = int(time.time())
    claims = {
        "iss": issuer,
        "aud": audience,
        "sub": service,
        "tenant": tenant,
        "scope": " ".join(dict.fromkeys(scopes)),
        "iat": now,
        "exp": now + ttl,
        "jti": str(uuid.uuid4()),
    }
    return jwt.encode(claims, key, algorithm="EdDSA")


def public_key_pem(path: Path) -> str:
    """The public half (SubjectPublicKeyInfo PEM) of the key at ``path``."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise DependencyUnavailable(f"the token key {path} cannot be read: {error}.") from error
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
