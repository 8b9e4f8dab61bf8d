"""Which keys may speak for a log. Kept by the verifier's owner, outside the database that is judged."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from memory_layer import canonical
from memory_layer.audit.origin import check_origin
from memory_layer.audit.seal import ALGORITHMS, decode_signature, key_id, load_public_key
from memory_layer.errors import MalformedJson, Problem, ValidationError

FORMAT: Final = "memory-layer/trust-root/v1"

Purpose = Literal["seal", "checkpoint", "manifest", "approval", "delegate"]


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key, what it may sign, and the entries it may sign for (both ends inclusive, ``to_seq`` None: open)."""

    key_id: str
    algorithm: str
    public_key: bytes  # DER SubjectPublicKeyInfo
    purpose: Purpose
    from_seq: int
    to_seq: int | None


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """The content of ``trust-root.json``; ``digest`` is the lower-hex SHA-256 of the file's bytes, for the auditor to pin."""

    origin: str
    version: int
    keys: tuple[TrustedKey, ...]
    digest: str


def trusted_key(
    algorithm: str, public_key_der: bytes, purpose: Purpose = "seal", from_seq: int = 0, to_seq: int | None = None
) -> TrustedKey:
    """The record of a key, with its id. Raises ValidationError when the key does not fit the algorithm or is a weak one."""
    key = TrustedKey(key_id(public_key_der), algorithm, public_key_der, purpose, from_seq, to_seq)
    _check_key(key, "key")
    return key


def dump(origin: str, keys: Iterable[TrustedKey], version: int = 1) -> bytes:
    """The bytes of ``trust-root.json``. Raises ValidationError like ``load``."""
    data = (
        json.dumps(
            {
                "format": FORMAT,
                "version": version,
                "origin": origin,
                "keys": [
                    {
                        "key_id": key.key_id,
                        "algorithm": key.algorithm,
                        "public_key": base64.b64encode(key.public_key).decode("ascii"),
                        "purpose": key.purpose,
                        "from_seq": key.from_seq,
                        "to_seq": key.to_seq,
                    }
                    for key in keys
                ],
            },
            indent=2,
        )
        + "\n"
    ).encode()
    load(data)
    return data


def load(data: bytes) -> TrustRoot:
    """Read the bytes of ``trust-root.json``. Raises ValidationError naming the member that is wrong, missing or unknown."""
    try:
        document = canonical.loads(data)
    except MalformedJson as error:
        raise _wrong("trust-root.json", error.message) from None
    _members(document, "trust-root.json", {"format", "version", "origin", "keys"})
    if document["format"] != FORMAT:
        raise _wrong("format", f"is not {FORMAT}")
    version = _integer(document["version"], "version")
    if version < 1:
        raise _wrong("version", "counts from 1")
    if not isinstance(document["origin"], str):
        raise _wrong("origin", "is not text")
    check_origin(document["origin"])
    if not isinstance(document["keys"], list) or not document["keys"]:
        raise _wrong("keys", "is not a list of at least one key")
    keys = tuple(_load_key(item, f"keys.{position}") for position, item in enumerate(document["keys"]))
    if len({(key.key_id, key.purpose) for key in keys}) != len(keys):
        raise _wrong("keys", "names a key twice for one purpose")
    return TrustRoot(document["origin"], version, keys, hashlib.sha256(data).hexdigest())


def _load_key(item: Any, path: str) -> TrustedKey:
    _members(item, path, {"key_id", "algorithm", "public_key", "purpose", "from_seq", "to_seq"})
    for name in ("key_id", "algorithm", "public_key", "purpose"):
        if not isinstance(item[name], str):
            raise _wrong(f"{path}.{name}", "is not text")
    der = decode_signature(item["public_key"])
    if der is None:
        raise _wrong(f"{path}.public_key", "is not standard base64 with padding")
    from_seq = _integer(item["from_seq"], f"{path}.from_seq")
    to_seq = None if item["to_seq"] is None else _integer(item["to_seq"], f"{path}.to_seq")
    key = TrustedKey(item["key_id"], item["algorithm"], der, item["purpose"], from_seq, to_seq)
    _check_key(key, path)
    return key


def _check_key(key: TrustedKey, path: str) -> None:
    if key.algorithm not in ALGORITHMS:
        raise _wrong(f"{path}.algorithm", f"is not one of {', '.join(sorted(ALGORITHMS))}")
    if key.purpose not in get_args(Purpose):
        raise _wrong(f"{path}.purpose", f"is not one of {', '.join(get_args(Purpose))}")
    if key.key_id != key_id(key.public_key):
        raise _wrong(f"{path}.key_id", "is not the SHA-256 of public_key")
    if load_public_key(key.algorithm, key.public_key) is None:
        raise _wrong(f"{path}.public_key", f"is no usable DER key for {key.algorithm}")
    if key.to_seq is not None and key.to_seq < key.from_seq:
        raise _wrong(f"{path}.to_seq", "lies before from_seq")


def _members(item: Any, path: str, names: set[str]) -> None:
    if not isinstance(item, dict):
        raise _wrong(path, "is not an object")
    for name in sorted(names ^ set(item)):
        raise _wrong(f"{path}.{name}", "is missing" if name in names else "is unknown")


def _integer(value: Any, path: str) -> int:
    if type(value) is not int or value < 0:
        raise _wrong(path, "is not an integer from 0")
    return value


def _wrong(path: str, problem: str) -> ValidationError:
    return ValidationError(f"The trust root cannot be used: {path} {problem}.", details=[Problem(path, problem)])
