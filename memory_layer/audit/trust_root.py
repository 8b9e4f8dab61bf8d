"""Which keys may sign for a log. Kept by the verifier's owner, outside the database that is judged.

And what the log itself says of keys: the payloads of ``audit.key.activated`` and ``audit.key.retired``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

from memory_layer import canonical
from memory_layer.audit.entry import TIME, is_time
from memory_layer.audit.origin import check_origin
from memory_layer.audit.seal import ALGORITHMS, decode_signature, key_id, load_public_key
from memory_layer.errors import MalformedJson, Problem, ValidationError

FORMAT: Final = "memory-layer/trust-root/v1"
ACTIVATED_FORMAT: Final = "memory-layer/audit-key-activated/v1"
RETIRED_FORMAT: Final = "memory-layer/audit-key-retired/v1"

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
                "keys": [_key_json(key) for key in keys],
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


# --- What the log says of keys -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delegation:
    """The word of a pinned key that another one may seal until ``expiry`` (inclusive, as ``format_ts`` writes it)."""

    delegate: str  # key id of the pinned key, whose purpose is "delegate"
    expiry: str
    signature: bytes  # over ``delegation_text``, by the delegate's algorithm


@dataclass(frozen=True, slots=True)
class Activation:
    """The payload of ``audit.key.activated``. Without a delegation it only tells of a key, which the trust root must have."""

    key: TrustedKey
    delegation: Delegation | None


@dataclass(frozen=True, slots=True)
class Retirement:
    """The payload of ``audit.key.retired``: the key may sign for no entry after ``to_seq``."""

    key_id: str
    purpose: Purpose
    to_seq: int


class KeyEntry(NamedTuple):
    """An entry about a key (``audit.key.activated``, ``audit.key.retired``), remembered beyond the part of the log that it is in."""

    seq: int
    type: str
    ts: str
    payload: bytes


def delegation_text(origin: str, key: TrustedKey, *, expiry: str, delegate: TrustedKey) -> bytes:
    """What a key of purpose ``delegate`` signs to let ``key`` seal from ``key.from_seq`` until ``expiry``, ``expiry`` included."""
    return (
        f"memory-layer/audit-key-delegation/v1\nlog {check_origin(origin)}\nkey {key.key_id}\nalg {key.algorithm}\n"
        f"from {key.from_seq}\nexpiry {expiry}\ndelegate {delegate.key_id}\ndelegate-alg {delegate.algorithm}\n"
    ).encode("ascii")


def activation_payload(key: TrustedKey, delegation: Delegation | None = None) -> bytes:
    """The payload of ``audit.key.activated``. Raises ValidationError like ``parse_activation``."""
    document: dict[str, Any] = {"format": ACTIVATED_FORMAT, **_key_json(key), "delegation": None}
    del document["to_seq"]
    if delegation is not None:
        signature = base64.b64encode(delegation.signature).decode("ascii")
        document["delegation"] = {
            "delegate": delegation.delegate,
            "expiry": delegation.expiry,
            "signature": signature,
        }
    payload = canonical.dumps(document)
    parse_activation(payload)
    return payload


def parse_activation(payload: bytes) -> Activation:
    """Read the payload of ``audit.key.activated``. Raises ValidationError naming what is wrong with it."""
    document = _document(payload, ACTIVATED_FORMAT, {"delegation", *_KEY_MEMBERS} - {"to_seq"})
    key = _load_key({name: document[name] for name in document if name in _KEY_MEMBERS} | {"to_seq": None}, "payload")
    stated = document["delegation"]
    if stated is None:
        return Activation(key, None)
    _members(stated, "payload.delegation", {"delegate", "expiry", "signature"})
    if key.purpose != "seal":
        raise _wrong("payload.delegation", "is for another key than one that seals")
    expiry, signature = stated["expiry"], stated["signature"]
    if not isinstance(expiry, str) or re.fullmatch(TIME, expiry) is None or not is_time(expiry):
        raise _wrong("payload.delegation.expiry", "is not RFC 3339 in UTC with six digits and Z")
    raw = decode_signature(signature) if isinstance(signature, str) else None
    if raw is None:
        raise _wrong("payload.delegation.signature", "is not standard base64 with padding")
    return Activation(key, Delegation(_hash(stated["delegate"], "payload.delegation.delegate"), expiry, raw))


def retirement_payload(key_id: str, to_seq: int, purpose: Purpose = "seal") -> bytes:
    """The payload of ``audit.key.retired``. Raises ValidationError like ``parse_retirement``."""
    document = {"format": RETIRED_FORMAT, "key_id": key_id, "purpose": purpose, "to_seq": to_seq}
    payload = canonical.dumps(document)
    parse_retirement(payload)
    return payload


def parse_retirement(payload: bytes) -> Retirement:
    """Read the payload of ``audit.key.retired``. Raises ValidationError naming what is wrong with it."""
    document = _document(payload, RETIRED_FORMAT, {"key_id", "purpose", "to_seq"})
    if document["purpose"] not in get_args(Purpose):
        raise _wrong("payload.purpose", f"is not one of {', '.join(get_args(Purpose))}")
    key = _hash(document["key_id"], "payload.key_id")
    return Retirement(key, document["purpose"], _integer(document["to_seq"], "payload.to_seq"))


def _document(payload: bytes, name: str, members: set[str]) -> dict[str, Any]:
    try:
        document = canonical.loads(payload)
    except MalformedJson as error:
        raise _wrong("payload", error.message) from None
    _members(document, "payload", {"format", *members})
    if document["format"] != name:
        raise _wrong("payload.format", f"is not {name}")
    return dict(document)


def _hash(value: Any, path: str) -> str:
    if not isinstance(value, str) or re.fullmatch(r"[0-9a-f]{64}", value) is None:
        raise _wrong(path, "is not 64 digits of lower-case hex")
    return value


# --- Reading and writing keys ------------------------------------------------------------------------------------------

_KEY_MEMBERS: Final = {"key_id", "algorithm", "public_key", "purpose", "from_seq", "to_seq"}


def _key_json(key: TrustedKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "algorithm": key.algorithm,
        "public_key": base64.b64encode(key.public_key).decode("ascii"),
        "purpose": key.purpose,
        "from_seq": key.from_seq,
        "to_seq": key.to_seq,
    }


def _load_key(item: Any, path: str) -> TrustedKey:
    _members(item, path, _KEY_MEMBERS)
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
    if key.purpose == "checkpoint" and key.algorithm != "ed25519":
        raise _wrong(f"{path}.algorithm", "is not ed25519, as a key for checkpoints must be")
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
    return ValidationError(f"What is said of keys cannot be used: {path} {problem}.", details=[Problem(path, problem)])
