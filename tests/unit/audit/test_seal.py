"""Seals, their signatures in the strict sense, and the trust root."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from memory_layer.audit import seal, trust_root
from memory_layer.audit.verify import Row, SealRow, verify
from memory_layer.errors import ValidationError

GOLDEN = Path(__file__).parent / "golden" / "log.json"
LINES: dict[str, Any] = {
    "log": "memory.example/audit/prod/s0/e1",
    "batch": 3,
    "first": 30,
    "last": 39,
    "head": "ab" * 32,
    "prev_seal": "cd" * 32,
    "time": "2026-01-02T03:04:05.678901Z",
    "key": "ef" * 32,
    "alg": "ed25519",
}
TEXT = b"memory-layer/audit-seal/v1\nwhatever\n"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P = 2**255 - 19
ED = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
EC = ec.derive_private_key(7, ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def der(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def ed25519_der(point: bytes) -> bytes:
    return bytes.fromhex("302a300506032b6570032100") + point


def pss(text: bytes, salt: int = 32) -> bytes:
    return RSA.sign(text, padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=salt), SHA256())


def test_text_of_a_seal() -> None:
    text = seal.seal_text(**LINES)
    assert text == (
        b"memory-layer/audit-seal/v1\nlog memory.example/audit/prod/s0/e1\nbatch 3\nrange 30 39\nhead " + b"ab" * 32
        + b"\nprev-seal " + b"cd" * 32 + b"\ntime 2026-01-02T03:04:05.678901Z\nkey " + b"ef" * 32 + b"\nalg ed25519\n"
    )  # fmt: skip
    assert seal.parse_seal(text)._asdict() == LINES
    assert seal.seal_hash(text) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    "lines",
    [
        {"last": 29},
        {"batch": -1},
        {"first": 10**15, "last": 10**15},
        {"head": "AB" * 32},
        {"head": "ab"},
        {"prev_seal": None},
        {"time": "2026-02-30T03:04:05.678901Z"},
        {"time": "2026-01-02"},
        {"key": "x" * 64},
        {"alg": "a b"},
        {"alg": "ed25519\nbatch 4"},
        {"log": "a b"},
        {"log": "é"},
        {"log": ""},
    ],
)
def test_what_a_seal_cannot_say(lines: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        seal.seal_text(**{**LINES, **lines})


@given(st.integers(0, len(seal.seal_text(**LINES)) - 1), st.integers(0, 255))
def test_a_changed_byte_is_another_seal(place: int, byte: int) -> None:
    before = seal.seal_text(**LINES)
    changed = before[:place] + bytes([byte]) + before[place + 1 :]
    try:
        read = seal.parse_seal(changed)
    except ValidationError:
        return
    assert (read == seal.parse_seal(before)) == (changed == before)
    assert seal.seal_text(**read._asdict()) == changed


@given(st.binary(min_size=1, max_size=90))
def test_one_signature_has_one_spelling(data: bytes) -> None:
    text = seal.encode_signature(data)
    assert seal.decode_signature(text) == data
    for other in (text + "\n", text + "=", text.replace("=", ""), text.replace("+", "-").replace("/", "_"), " " + text):
        assert other == text or seal.decode_signature(other) is None


@given(st.text(max_size=40))
def test_any_text_is_a_signature_or_none(text: str) -> None:
    data = seal.decode_signature(text)
    assert data is None or seal.encode_signature(data) == text


def test_ed25519() -> None:
    signature = ED.sign(TEXT)
    assert seal.verify_signature("ed25519", der(ED), TEXT, signature)
    assert not seal.verify_signature("ed25519", der(ED), TEXT + b" ", signature)
    assert not seal.verify_signature("ed25519", der(ED), TEXT, signature + b"\0")
    assert not seal.verify_signature("ed25519", der(ED), TEXT, signature[:-1])
    order = 2**252 + 27742317777372353535851937790883648493
    shifted = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert not seal.verify_signature("ed25519", der(ED), TEXT, shifted)
    assert not seal.verify_signature("ed25519", der(EC), TEXT, signature)
    assert not seal.verify_signature("none", der(ED), TEXT, signature)
    assert not seal.verify_signature("ed25519", b"junk", TEXT, signature)


def small_order_points() -> list[bytes]:
    """All eight points killed by the cofactor, found on the curve -x^2 + y^2 = 1 + d x^2 y^2, with unreduced spellings."""
    d = -121665 * pow(121666, -1, P) % P
    # y^2 of a point of order eight: doubling it must give y = 0, hence x^2 = -y^2 and d y^4 + 2 y^2 - 1 = 0.
    root = pow(1 + d, (P + 3) // 8, P)
    root = root if root * root % P == (1 + d) % P else root * pow(2, (P - 1) // 4, P) % P
    ys = {0, 1, P - 1}
    for square in ((-1 + root) * pow(d, -1, P) % P, (-1 - root) * pow(d, -1, P) % P):
        y = pow(square, (P + 3) // 8, P)
        y = y if y * y % P == square else y * pow(2, (P - 1) // 4, P) % P
        if y * y % P == square:
            ys |= {y, P - y}
    assert len(ys) == 5
    spelled = [*ys, P, P + 1]
    return [(y | sign << 255).to_bytes(32, "little") for y in spelled for sign in (0, 1)]


def test_ed25519_points_of_small_order_are_refused() -> None:
    signature = ED.sign(TEXT)
    for point in small_order_points():
        assert not seal.verify_signature("ed25519", ed25519_der(point), TEXT, point + bytes(32))
        assert not seal.verify_signature("ed25519", ed25519_der(point), TEXT, signature)
        assert not seal.verify_signature("ed25519", der(ED), TEXT, point + signature[32:])
        with pytest.raises(ValidationError):
            trust_root.trusted_key("ed25519", ed25519_der(point))


def test_ecdsa_p256() -> None:
    signature = seal.ecdsa_raw(EC.sign(TEXT, ec.ECDSA(SHA256())))
    assert len(signature) == 64
    assert seal.verify_signature("ecdsa-p256-sha256", der(EC), TEXT, signature)
    high = signature[:32] + (P256_ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
    assert not seal.verify_signature("ecdsa-p256-sha256", der(EC), TEXT, high)
    for bad in (signature[:-1], b"\0" * 64, signature[:32] + b"\0" * 32, b"\xff" * 32 + signature[32:]):
        assert not seal.verify_signature("ecdsa-p256-sha256", der(EC), TEXT, bad)
    assert not seal.verify_signature("ecdsa-p256-sha256", der(EC), TEXT, EC.sign(TEXT, ec.ECDSA(SHA256())))
    other_curve = ec.derive_private_key(7, ec.SECP256K1())
    assert seal.load_public_key("ecdsa-p256-sha256", der(other_curve)) is None


def test_rsa_pss() -> None:
    assert seal.verify_signature("rsa-pss-sha256", der(RSA), TEXT, pss(TEXT))
    assert not seal.verify_signature("rsa-pss-sha256", der(RSA), TEXT, pss(TEXT, salt=20))
    assert not seal.verify_signature("rsa-pss-sha256", der(RSA), TEXT, RSA.sign(TEXT, padding.PKCS1v15(), SHA256()))
    assert not seal.verify_signature("rsa-pss-sha256", der(RSA), TEXT + b" ", pss(TEXT))


ROOT = "memory.example/audit/prod/s0/e1"


def test_trust_root_round_trip() -> None:
    keys = [
        trust_root.trusted_key("ed25519", der(ED), "seal", 0, 99),
        trust_root.trusted_key("ecdsa-p256-sha256", der(EC), "seal", 100),
        trust_root.trusted_key("rsa-pss-sha256", der(RSA), "delegate"),
        trust_root.trusted_key("ed25519", der(ED), "checkpoint"),
    ]
    data = trust_root.dump(ROOT, keys, version=3)
    root = trust_root.load(data)
    assert (root.origin, root.version, list(root.keys)) == (ROOT, 3, keys)
    assert root.digest == hashlib.sha256(data).hexdigest()
    assert trust_root.load(data.replace(b"\n", b"")).digest != root.digest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "other"),
        (("version",), 0),
        (("version",), "1"),
        (("version",), True),
        (("origin",), "x"),
        (("origin",), None),
        (("keys",), []),
        (("keys",), {}),
        (("extra",), 1),
        (("keys", 0), 1),
        (("keys", 0, "key_id"), "0" * 64),
        (("keys", 0, "algorithm"), "hmac"),
        (("keys", 0, "algorithm"), "rsa-pss-sha256"),
        (("keys", 0, "public_key"), "AAAA"),
        (("keys", 0, "public_key"), "%%"),
        (("keys", 0, "purpose"), "all"),
        (("keys", 0, "from_seq"), -1),
        (("keys", 0, "from_seq"), 1.5),
        (("keys", 0, "from_seq"), 8),
        (("keys", 0, "extra"), 1),
    ],
)
def test_trust_root_is_read_strictly(path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(trust_root.dump(ROOT, [trust_root.trusted_key("ed25519", der(ED), to_seq=7)]))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError) as caught:
        trust_root.load(json.dumps(document).encode())
    assert caught.value.details


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'{"format":1,"format":1}', b"\xff"])
def test_no_trust_root(data: bytes) -> None:
    with pytest.raises(ValidationError):
        trust_root.load(data)


def test_key_named_twice() -> None:
    key = trust_root.trusted_key("ed25519", der(ED))
    with pytest.raises(ValidationError, match="twice"):
        trust_root.dump(ROOT, [key, key])


def test_golden_log() -> None:
    """The checked-in log is verified from its own text alone, and its seals and signatures are made again."""
    vectors = json.loads(GOLDEN.read_text())
    private = ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vectors["privateKey"]))
    assert der(private).hex() == vectors["publicKeyDer"]
    assert seal.key_id(der(private)) == vectors["keyId"]
    rows = []
    for number, batch in enumerate(vectors["seals"]):
        assert seal.seal_text(**batch["lines"]).decode() == batch["text"]
        assert seal.seal_hash(batch["text"].encode()) == batch["hash"]
        assert seal.encode_signature(private.sign(batch["text"].encode())) == batch["signature"]
        for vector in vectors["entries"][batch["lines"]["first"] : batch["lines"]["last"] + 1]:
            m = vector["members"]
            salt, payload = vector.get("salt"), vector.get("payload")
            rows.append(
                Row(
                    m["seq"], number, vector["bytes"].encode(), vector["hash"], m["prev"], batch["signature"], m["id"], m["ts"],
                    m["type"], m["tenant"], m["node"], m["artifact"], m["manifest_signature_id"],
                    bytes.fromhex(salt) if salt else None, payload.encode() if payload else None,
                )
            )  # fmt: skip
    root = trust_root.load(vectors["trustRoot"].encode())
    seals = [SealRow(n, batch["text"].encode(), batch["signature"]) for n, batch in enumerate(vectors["seals"])]
    verdict = verify(root, rows, seals, expected_origin=vectors["origin"], pinned=True)
    assert (verdict.findings, verdict.counts.head) == ((), vectors["entries"][-1]["hash"])
