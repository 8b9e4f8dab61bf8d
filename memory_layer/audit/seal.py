"""A seal: one signature per committed batch of entries. Format: ``docs/audit-format.md``, "Seal"."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

from memory_layer.audit.entry import INTEGER, TIME, is_time
from memory_layer.errors import Problem, ValidationError

ALGORITHMS: Final = frozenset({"ed25519", "ecdsa-p256-sha256", "rsa-pss-sha256"})
NO_PREVIOUS: Final = "0" * 64  # prev-seal of batch 0

_SEAL: Final = re.compile(
    "memory-layer/audit-seal/v1\n"
    r"log ([!-~]{1,255})\n"
    rf"batch ({INTEGER})\n"
    rf"range ({INTEGER}) ({INTEGER})\n"
    r"head ([0-9a-f]{64})\n"
    r"prev-seal ([0-9a-f]{64})\n"
    rf"time ({TIME})\n"
    r"key ([0-9a-f]{64})\n"
    r"alg ([A-Za-z0-9._-]{1,64})\n"
)


class Seal(NamedTuple):
    """The lines of a seal."""

    log: str
    batch: int
    first: int
    last: int
    head: str
    prev_seal: str
    time: str
    key: str
    alg: str


def seal_text(
    *, log: str, batch: int, first: int, last: int, head: str, prev_seal: str, time: str, key: str, alg: str
) -> bytes:
    """The bytes that are signed. Raises ValidationError when a value does not fit its line.

    ``first`` and ``last`` are the sequence numbers of the batch, both inclusive; ``head`` is the hash of the last entry, ``time``
    its ``ts``; ``prev_seal`` is ``seal_hash`` of the seal before, or NO_PREVIOUS; ``key`` is ``key_id`` of the signing key.
    """
    text = (
        f"memory-layer/audit-seal/v1\nlog {log}\nbatch {batch}\nrange {first} {last}\nhead {head}\n"
        f"prev-seal {prev_seal}\ntime {time}\nkey {key}\nalg {alg}\n"
    ).encode("utf-8", "surrogatepass")
    parse_seal(text)
    return text


def parse_seal(text: bytes) -> Seal:
    """The lines of a seal text. Raises ValidationError unless it has exactly the one canonical form."""
    match = _SEAL.fullmatch(text.decode("latin-1"))
    if match is not None:
        log, batch, first, last, head, prev_seal, time, key, alg = match.groups()
        if int(first) <= int(last) and is_time(time):
            return Seal(log, int(batch), int(first), int(last), head, prev_seal, time, key, alg)
    raise ValidationError("Not a seal text of version 1.", details=[Problem("seal", "not canonical")])


def seal_hash(text: bytes) -> str:
    """SHA-256 of a seal text, lower hex: ``prev-seal`` of the next one."""
    return hashlib.sha256(text).hexdigest()


def key_id(public_key_der: bytes) -> str:
    """SHA-256 of the key's DER SubjectPublicKeyInfo, lower hex."""
    return hashlib.sha256(public_key_der).hexdigest()


def encode_signature(signature: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(signature).decode("ascii")


def decode_signature(text: str) -> bytes | None:
    """The bytes of canonical standard base64, or None: one signature has one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if data and base64.b64encode(data).decode("ascii") == text else None


_ED25519_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_ED25519_PRIME: Final = 2**255 - 19
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# y coordinates of the eight points whose order divides the cofactor: 0, 1, -1 and the two of order eight. A key or an R
# among them makes one signature fit many messages.
_ORDER_EIGHT: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER: Final = frozenset({0, 1, _ED25519_PRIME - 1, _ORDER_EIGHT, _ED25519_PRIME - _ORDER_EIGHT})


def _refused_point(encoded: bytes) -> bool:
    """A point of small order, or a y coordinate that is not reduced."""
    y = int.from_bytes(encoded, "little") & (1 << 255) - 1
    return y >= _ED25519_PRIME or y in _SMALL_ORDER


@lru_cache(maxsize=256)
def load_public_key(alg: str, public_key_der: bytes) -> Any:
    """The key object for ``alg``, or None when these bytes are no key that may be used with it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

    try:
        key = load_der_public_key(public_key_der)
        if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != public_key_der:
            return None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # the parser's ways to say no
        return None
    if alg == "ed25519" and isinstance(key, ed25519.Ed25519PublicKey):
        return None if _refused_point(key.public_bytes_raw()) else key
    if alg == "ecdsa-p256-sha256" and isinstance(key, ec.EllipticCurvePublicKey):
        return key if isinstance(key.curve, ec.SECP256R1) else None
    if alg == "rsa-pss-sha256" and isinstance(key, rsa.RSAPublicKey):
        return key if 2048 <= key.key_size <= 8192 else None
    return None


def verify_signature(alg: str, public_key_der: bytes, text: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is the key's over ``text``, in the strict sense of the format.

    Ed25519: over the text; S below the group order, neither key nor R of small order. ECDSA P-256: r || s, 32 bytes each, s in
    the lower half; over SHA-256 of the text. RSA-PSS: MGF1-SHA-256, salt of 32 bytes; over SHA-256 of the text.
    """
    verifier = _verifier(alg, public_key_der)
    return verifier is not None and verifier(text, signature)


@lru_cache(maxsize=256)
def _verifier(alg: str, public_key_der: bytes) -> Callable[[bytes, bytes], bool] | None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
    from cryptography.hazmat.primitives.hashes import SHA256

    key = load_public_key(alg, public_key_der)
    if key is None:
        return None

    def ed25519(text: bytes, signature: bytes) -> bool:
        if len(signature) != 64 or int.from_bytes(signature[32:], "little") >= _ED25519_ORDER:
            return False
        if _refused_point(signature[:32]):
            return False
        key.verify(signature, text)
        return True

    def ecdsa_p256(text: bytes, signature: bytes) -> bool:
        if len(signature) != 64:
            return False
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        if not (0 < r < _P256_ORDER and 0 < s <= _P256_ORDER // 2):
            return False
        key.verify(utils.encode_dss_signature(r, s), text, ec.ECDSA(SHA256()))
        return True

    def rsa_pss(text: bytes, signature: bytes) -> bool:
        key.verify(signature, text, padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32), SHA256())
        return True

    check = {"ed25519": ed25519, "ecdsa-p256-sha256": ecdsa_p256, "rsa-pss-sha256": rsa_pss}[alg]

    def verified(text: bytes, signature: bytes) -> bool:
        try:
            return check(text, signature)
        except InvalidSignature:
            return False

    return verified


def ecdsa_raw(der_signature: bytes) -> bytes:
    """r || s with s in the lower half, from the DER form that key services and libraries return."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    r, s = decode_dss_signature(der_signature)
    return r.to_bytes(32, "big") + min(s, _P256_ORDER - s).to_bytes(32, "big")
