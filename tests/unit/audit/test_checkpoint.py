"""Checkpoints and proofs: the notes of c2sp.org, golden vectors, and no change to either that passes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_layer.audit import tree
from memory_layer.audit import trust_root as trust_roots
from memory_layer.audit.checkpoint import check_checkpoint, note_key_id, parse_checkpoint, sign_checkpoint
from memory_layer.audit.entry import leaf_hash
from memory_layer.audit.proof import build_proof, parse_proof, verify_proof
from memory_layer.audit.seal import verify_signature
from memory_layer.errors import SignerUnavailable, ValidationError

GOLDEN = Path(__file__).parent / "golden"
LOG = json.loads((GOLDEN / "log.json").read_text())
VECTORS = json.loads((GOLDEN / "tree.json").read_text())
ORIGIN = VECTORS["origin"]
ROOT = trust_roots.load(VECTORS["trustRoot"].encode())
ENTRIES = [vector["bytes"].encode() for vector in LOG["entries"]]
LEAVES = [bytes.fromhex(leaf_hash(entry)) for entry in ENTRIES]
NEWEST = VECTORS["checkpoints"][-1]["note"].encode()
KEY = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["checkpointPrivateKey"]))


def der(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def note(size: int, root: bytes, key: Ed25519PrivateKey = KEY, origin: str = ORIGIN) -> bytes:
    return sign_checkpoint(origin, size, root, public_key_der=der(key), sign=key.sign)


def read_tile(_level: int, _index: int, width: int) -> bytes:
    return b"".join(LEAVES[:width])


def root_with(*keys: trust_roots.TrustedKey) -> trust_roots.TrustRoot:
    return trust_roots.load(trust_roots.dump(ORIGIN, keys))


def code(note_bytes: bytes, root: trust_roots.TrustRoot = ROOT) -> str | None:
    finding = check_checkpoint(parse_checkpoint(note_bytes), root)
    return None if finding is None else finding.code


def test_key_id_and_signature_of_the_published_note() -> None:
    """The verifier key and the note that c2sp.org/signed-note gives as its example."""
    vkey = base64.b64decode("AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
    public = bytes.fromhex("302a300506032b6570032100") + vkey[1:]
    assert note_key_id("example.com/foo", public).hex() == "530d903a"
    line = base64.b64decode(
        "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
    )
    assert line[:4].hex() == "530d903a"
    assert verify_signature("ed25519", public, b"This is an example message.\n", line[4:])


def test_golden_checkpoints() -> None:
    grown = tree.Frontier()
    for vector in VECTORS["checkpoints"]:
        grown.extend(LEAVES[grown.size : vector["size"]])
        data = vector["note"].encode()
        assert note(vector["size"], grown.root()) == data
        checkpoint = parse_checkpoint(data)
        assert (checkpoint.origin, checkpoint.size, checkpoint.root.hex()) == (ORIGIN, vector["size"], vector["root"])
        assert checkpoint.root == grown.root()
        assert check_checkpoint(checkpoint, ROOT) is None


def test_golden_proofs() -> None:
    for vector in VECTORS["proofs"]:
        index, text = vector["index"], vector["text"].encode()
        path = tree.inclusion_proof(index, len(LEAVES), read_tile)
        proof = parse_proof(text)
        assert (proof.index, list(proof.path), proof.checkpoint.note) == (index, path, NEWEST)
        assert proof.entry in (None, ENTRIES[index])
        assert build_proof(index, path, NEWEST, entry=proof.entry) == text
        assert verify_proof(proof, ROOT, entry=ENTRIES[index]) is None
        alone = verify_proof(proof, ROOT)
        assert (alone is None) == (proof.entry is not None)


def test_golden_consistency_proofs() -> None:
    roots = [bytes.fromhex(vector["root"]) for vector in VECTORS["checkpoints"]]
    for vector in VECTORS["consistency"]:
        first, second = vector["first"], vector["second"]
        path = tree.consistency_proof(first, second, read_tile)
        assert [value.hex() for value in path] == vector["path"]
        assert tree.verify_consistency(first, second, path, roots[first], roots[second])


# --- Notes in another form -------------------------------------------------------------------------------------------

TEXT, LINE = NEWEST.split(b"\n\n")
B64_ROOT = TEXT.split(b"\n")[2]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n\n", TEXT + b"\n", TEXT + b"\n\n", NEWEST[:-1], NEWEST + b"\n", b"\n" + NEWEST, NEWEST.replace(b"\n", b"\r\n"),
        NEWEST.replace(b"\n5\n", b"\n05\n"), NEWEST.replace(b"\n5\n", b"\n+5\n"), NEWEST.replace(b"\n5\n", b"\n5 \n"),
        NEWEST.replace(b"\n5\n", b"\n1" + b"0" * 15 + b"\n"), NEWEST.replace(b"\n5\n", "\n٥\n".encode()),
        NEWEST.replace(b"\n\n", b"\nextension\n\n"), NEWEST.replace(b"\n\n", b"\n\n\n"),
        NEWEST.replace(B64_ROOT, B64_ROOT[:-1]), NEWEST.replace(B64_ROOT, base64.b64encode(bytes(31))),
        NEWEST.replace(B64_ROOT, base64.b64encode(bytes(33))), NEWEST.replace(B64_ROOT, b"A" * 42 + b"B="),
        NEWEST.replace(b" ", b"  "), NEWEST.replace("—".encode(), b"-"), NEWEST[:-1] + b"=\n", NEWEST.replace(b"example", b"ex+mple"),
        NEWEST + b"trailing\n", NEWEST + "— name AAAA\n".encode(), NEWEST + b"\xff\n", NEWEST + LINE[:-1],
        TEXT + b"\n\n" + LINE * 65, TEXT + b"\n\n" + LINE + b"\xe2\x80\x94 a " + b"A" * 131_072 + b"\n",
    ],
)  # fmt: skip
def test_a_note_has_one_form(data: bytes) -> None:
    assert data != NEWEST
    with pytest.raises(ValidationError):
        parse_checkpoint(data)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_to_a_note_is_refused_or_harmless(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(NEWEST) - 1))
    byte = data.draw(st.integers(0, 255))
    kind = data.draw(st.sampled_from(["set", "drop", "insert"]))
    keep = NEWEST[place:] if kind == "insert" else NEWEST[place + 1 :]
    changed = NEWEST[:place] + (b"" if kind == "drop" else bytes([byte])) + keep
    try:
        checkpoint = parse_checkpoint(changed)
    except ValidationError:
        return
    assert check_checkpoint(checkpoint, ROOT) is not None or changed == NEWEST


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_in_order(data: bytes) -> None:
    for parse in (parse_checkpoint, parse_proof):
        with pytest.raises(ValidationError):
            parse(data)


# --- Signatures ------------------------------------------------------------------------------------------------------

OTHER = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
HEAD = parse_checkpoint(NEWEST)


def added(*notes: bytes) -> bytes:
    """One text with the signature lines of all notes."""
    return notes[0] + b"".join(one.split(b"\n\n")[1] for one in notes[1:])


def test_lines_by_others_are_passed_over() -> None:
    stranger = note(HEAD.size, HEAD.root, OTHER)
    witness = "— witness.example/w1 ".encode() + base64.b64encode(bytes(80)) + b"\n"
    assert code(added(stranger, NEWEST) + witness) is None
    assert code(added(NEWEST, stranger)) is None
    assert code(stranger) == "KEY_UNKNOWN"
    assert code(TEXT + b"\n\n" + witness) == "KEY_UNKNOWN"


def test_a_signature_that_fails_spoils_the_note() -> None:
    forged = NEWEST.replace(b"\n5\n", b"\n6\n")
    assert code(forged) == "CHECKPOINT_INVALID"
    moved = added(note(6, HEAD.root), NEWEST)
    assert code(moved) == "CHECKPOINT_INVALID"


def test_a_key_of_another_name_with_the_same_key_id_is_only_an_unknown_one() -> None:
    key_id = note_key_id(ORIGIN, der(KEY))
    line = f"— {ORIGIN}x {base64.b64encode(key_id + bytes(64)).decode()}\n".encode()
    assert code(TEXT + b"\n\n" + line) == "KEY_UNKNOWN"
    assert code(NEWEST + line) is None


@pytest.mark.parametrize(
    ("purpose", "from_seq", "to_seq", "found"),
    [
        ("seal", 0, None, "KEY_NOT_AUTHORISED_FOR_EPOCH"),
        ("checkpoint", 5, None, "KEY_NOT_AUTHORISED_FOR_EPOCH"),
        ("checkpoint", 4, None, None),
        ("checkpoint", 0, 4, None),
        ("checkpoint", 0, 3, "KEY_EPOCH_CLOSED"),
    ],
)
def test_a_key_signs_only_for_its_purpose_and_range(
    purpose: trust_roots.Purpose, from_seq: int, to_seq: int | None, found: str | None
) -> None:
    assert HEAD.size == 5
    root = root_with(trust_roots.trusted_key("ed25519", der(KEY), purpose, from_seq, to_seq))
    assert code(NEWEST, root) == found


def test_one_key_in_its_range_is_enough() -> None:
    both = added(note(HEAD.size, HEAD.root, OTHER), NEWEST)
    old = trust_roots.trusted_key("ed25519", der(OTHER), "checkpoint", 0, 3)
    new = trust_roots.trusted_key("ed25519", der(KEY), "checkpoint", 4)
    assert code(both, root_with(old, new)) is None
    assert code(added(note(HEAD.size, HEAD.root, OTHER)), root_with(old, new)) == "KEY_EPOCH_CLOSED"


def test_a_checkpoint_of_another_log() -> None:
    other = note(HEAD.size, HEAD.root, origin=ORIGIN.replace("prod", "staging"))
    assert code(other) == "ORIGIN_MISMATCH"


def test_a_signer_that_signs_something_else_is_refused() -> None:
    with pytest.raises(SignerUnavailable):
        sign_checkpoint(ORIGIN, 1, bytes(32), public_key_der=der(KEY), sign=OTHER.sign)
    with pytest.raises(ValidationError):
        sign_checkpoint(ORIGIN, 1, bytes(31), public_key_der=der(KEY), sign=KEY.sign)
    with pytest.raises(ValidationError):
        sign_checkpoint(
            ORIGIN, 1, bytes(32), public_key_der=der(ec.generate_private_key(ec.SECP256R1())), sign=KEY.sign
        )


def test_a_checkpoint_key_is_ed25519() -> None:
    with pytest.raises(ValidationError, match="ed25519"):
        trust_roots.trusted_key("ecdsa-p256-sha256", der(ec.generate_private_key(ec.SECP256R1())), "checkpoint")


# --- Proofs ----------------------------------------------------------------------------------------------------------

PATH = tree.inclusion_proof(2, 5, read_tile)


def refuted(text: bytes, entry: bytes | None = ENTRIES[2]) -> str | None:
    """The code of what is wrong with a proof, None when it holds."""
    finding = verify_proof(parse_proof(text), ROOT, entry=entry)
    return None if finding is None else finding.code


def test_a_proof_of_another_place_size_or_path() -> None:
    assert refuted(build_proof(2, PATH, NEWEST)) is None
    for index in (0, 1, 3, 4):
        assert refuted(build_proof(index, PATH, NEWEST)) == "PROOF_INVALID"
        assert refuted(build_proof(index, PATH, NEWEST), ENTRIES[index]) == "PROOF_INVALID"
    for vector in VECTORS["checkpoints"][:-1]:
        assert refuted(build_proof(2, PATH, vector["note"].encode())) == "PROOF_INVALID"
    for path in (PATH[1:], PATH[:-1], PATH[::-1], [*PATH, HEAD.root], [LEAVES[2], *PATH], []):
        assert refuted(build_proof(2, path, NEWEST)) == "PROOF_INVALID"


def test_a_node_is_no_entry() -> None:
    """Two hashes side by side, which hash to an inner node under the node's prefix, are not taken for an entry."""
    pair = LEAVES[2] + LEAVES[3]
    path = tree.inclusion_proof(2, 5, read_tile)[1:]
    assert refuted(build_proof(1, path, NEWEST, entry=pair), None) == "NONCANONICAL_ENCODING"


def test_a_proof_carries_its_entry_or_is_given_one() -> None:
    bare, full = build_proof(2, PATH, NEWEST), build_proof(2, PATH, NEWEST, entry=ENTRIES[2])
    assert refuted(full, None) is None
    assert refuted(bare, None) == "PROOF_INVALID"
    assert refuted(full, ENTRIES[3]) == "PROOF_INVALID"
    edited = ENTRIES[2].replace(b'"outcome":"ok"', b'"outcome":"denied"')
    assert refuted(build_proof(2, PATH, NEWEST, entry=edited), None) == "PROOF_INVALID"
    elsewhere = ENTRIES[2].replace(b"/prod/", b"/dev/")
    assert refuted(build_proof(2, PATH, NEWEST, entry=elsewhere), None) == "ORIGIN_MISMATCH"


def test_a_proof_under_a_checkpoint_that_nobody_trusts() -> None:
    assert refuted(build_proof(2, PATH, note(HEAD.size, HEAD.root, OTHER))) == "KEY_UNKNOWN"
    assert refuted(build_proof(2, PATH, NEWEST.replace(B64_ROOT, base64.b64encode(bytes(32))))) == "CHECKPOINT_INVALID"
    other = note(HEAD.size, HEAD.root, origin=ORIGIN.replace("prod", "staging"))
    assert refuted(build_proof(2, PATH, other)) == "ORIGIN_MISMATCH"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_to_a_proof_is_refused(data: st.DataObject) -> None:
    text = build_proof(2, PATH, NEWEST, entry=ENTRIES[2])
    place = data.draw(st.integers(0, len(text) - 1))
    kind = data.draw(st.sampled_from(["set", "drop", "insert", "drop line", "repeat line"]))
    if "line" in kind:
        lines = text.splitlines(keepends=True)
        number = place % len(lines)
        lines[number : number + 1] = [] if kind == "drop line" else [lines[number]] * 2
        changed = b"".join(lines)
    else:
        byte = bytes([data.draw(st.integers(0, 255))])
        changed = text[:place] + (b"" if kind == "drop" else byte) + text[place + (kind != "insert") :]
    try:
        proof = parse_proof(changed)
    except ValidationError:
        return
    if verify_proof(proof, ROOT, entry=ENTRIES[2]) is None:
        # A signature line said twice is the same signature; an entry left out is the one that was given.
        assert (proof.index, list(proof.path), proof.checkpoint.text) == (2, PATH, HEAD.text)
        assert set(proof.checkpoint.signatures) >= set(HEAD.signatures)
        assert proof.entry in (None, ENTRIES[2])
