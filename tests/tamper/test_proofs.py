"""Proofs of entries of a real log: each wrong one is PROOF_INVALID."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from memory_layer.audit.entry import leaf_hash
from memory_layer.audit.proof import build_proof, parse_proof, verify_proof
from memory_layer.audit.tree import inclusion_proof, node_hash
from memory_layer.audit.verdict import CODES
from tests.support.real_log import Forgery, RealLog, note_for

Path = list[bytes]
INDEX = 1234


@pytest.fixture
def forged(log: RealLog) -> Forgery:
    return log.forge()


def leaves(forged: Forgery) -> list[bytes]:
    return [bytes.fromhex(leaf_hash(entry)) for entry in forged.entries]


def path_of(forged: Forgery, index: int, size: int) -> Path:
    """The inclusion proof, from tiles made of the log's leaf hashes."""
    rows = [leaves(forged)]
    while len(rows[-1]) >= 256:
        full = len(rows[-1]) // 256
        rows.append([perfect(rows[-1][256 * n : 256 * n + 256]) for n in range(full)])
    return inclusion_proof(
        index, size, lambda level, tile, width: b"".join(rows[level][256 * tile : 256 * tile + width])
    )


def perfect(hashes: Path) -> bytes:
    while len(hashes) > 1:
        hashes = [node_hash(hashes[n], hashes[n + 1]) for n in range(0, len(hashes), 2)]
    return hashes[0]


def test_each_entry_has_a_proof(log: RealLog, forged: Forgery) -> None:
    size = log.anchor.size
    for index in (0, 1, 255, 256, INDEX, size - 1):
        text = build_proof(index, path_of(forged, index, size), log.notes[-1], entry=forged.entries[index])
        assert verify_proof(parse_proof(text), log.root) is None


WRONG: list[tuple[str, Callable[[Path], Path]]] = [
    ("extra hash", lambda path: [*path, bytes(32)]),
    ("missing hash", lambda path: path[:-1]),
    ("no hash", lambda path: []),
    ("hashes swapped", lambda path: [path[1], path[0], *path[2:]]),
    ("a hash changed", lambda path: [bytes(32), *path[1:]]),
    ("a node for the leaf", lambda path: path[1:]),
]


@pytest.mark.parametrize("change", [change for _, change in WRONG], ids=[name for name, _ in WRONG])
def test_hashes_that_do_not_lead_to_the_root(log: RealLog, forged: Forgery, change: Callable[[Path], Path]) -> None:
    path = change(path_of(forged, INDEX, log.anchor.size))
    problem = verify_proof(parse_proof(build_proof(INDEX, path, log.notes[-1], entry=forged.entries[INDEX])), log.root)
    assert problem is not None
    assert (problem.code, CODES[problem.code]) == ("PROOF_INVALID", 40)


def test_a_proof_for_another_place_size_or_entry(log: RealLog, forged: Forgery) -> None:
    size, entry = log.anchor.size, forged.entries[INDEX]
    path = path_of(forged, INDEX, size)
    smaller = note_for(log, size - 1, forged.tree_root(size - 1))
    for text in (
        build_proof(INDEX + 1, path, log.notes[-1], entry=entry),
        build_proof(INDEX, path_of(forged, INDEX, size), smaller, entry=forged.entries[INDEX]),
        build_proof(INDEX, path, log.notes[-1], entry=forged.entries[INDEX + 1]),
        build_proof(INDEX, path_of(forged, INDEX + 1, size), log.notes[-1], entry=entry),
    ):
        problem = verify_proof(parse_proof(text), log.root)
        assert problem is not None
        assert problem.code == "PROOF_INVALID"


def test_an_inner_node_is_no_entry(log: RealLog, forged: Forgery) -> None:
    """Two leaf hashes passed off as an entry: its hash would begin with 0x00, an inner node's with 0x01."""
    row = leaves(forged)
    text = build_proof(
        INDEX, path_of(forged, INDEX, log.anchor.size)[1:], log.notes[-1], entry=row[INDEX] + row[INDEX + 1]
    )
    problem = verify_proof(parse_proof(text), log.root)
    assert problem is not None
    assert problem.code == "NONCANONICAL_ENCODING"
