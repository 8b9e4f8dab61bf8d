"""The tree: published roots and proofs, the definition of RFC 6962 itself, and that no changed proof is taken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_layer.audit import tree
from memory_layer.errors import ValidationError

# The reference leaves and roots of Certificate Transparency's own tests.
LEAVES = [
    bytes.fromhex(text)
    for text in ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {  # (index, size)
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}


def leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def hashes(count: int) -> list[bytes]:
    return [leaf(number.to_bytes(4, "big")) for number in range(count)]


def reader(leaves: list[bytes], reads: list[tuple[int, int]] | None = None) -> tree.ReadTile:
    """Tiles cut as c2sp.org/tlog-tiles defines them."""

    def read(level: int, index: int, width: int) -> bytes:
        if reads is not None:
            reads.append((level, index))
        span = 256**level
        first = index * 256
        return b"".join(mth(leaves[n * span : (n + 1) * span]) for n in range(first, first + width))

    return read


def frontier(leaves: list[bytes]) -> tree.Frontier:
    grown = tree.Frontier()
    grown.extend(leaves)
    return grown


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    grown = tree.Frontier()
    for data in LEAVES[:size]:
        grown.append(leaf(data))
    assert (grown.size, grown.root().hex()) == (size, ROOTS[size])


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_published_inclusion_proofs(index: int, size: int) -> None:
    leaves = [leaf(data) for data in LEAVES]
    path = tree.inclusion_proof(index, size, reader(leaves))
    assert [value.hex() for value in path] == INCLUSION[index, size]
    assert tree.verify_inclusion(leaves[index], index, size, path, bytes.fromhex(ROOTS[size]))


def test_published_consistency_proofs() -> None:
    leaves = [leaf(data) for data in LEAVES]
    one, eight = bytes.fromhex(ROOTS[1]), bytes.fromhex(ROOTS[8])
    path = tree.consistency_proof(1, 8, reader(leaves))
    assert [value.hex() for value in path] == INCLUSION[0, 8]
    assert tree.verify_consistency(1, 8, path, one, eight)


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.integers(0, 300), max_size=6))
def test_the_root_does_not_depend_on_how_it_grew(parts: list[int]) -> None:
    leaves = hashes(sum(parts))
    grown, place = tree.Frontier(), 0
    for count in parts:
        grown.extend(leaves[place : place + count])
        place += count
        grown = tree.Frontier.loads(grown.dumps())
    assert (grown.size, grown.root()) == (len(leaves), mth(leaves))


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\0" * 9, b"\0" * 7 + b"\3" + b"\0" * 32])
def test_a_frontier_of_the_wrong_length_is_refused(data: bytes) -> None:
    if data == b"":
        data = b"\0" * 7 + b"\1"
    with pytest.raises(ValidationError):
        tree.Frontier.loads(data)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 70_000])
def test_tiles(size: int) -> None:
    leaves = hashes(size)
    writer, stored = tree.TileWriter(), {}
    for first in range(0, size, 999):
        writer = tree.TileWriter(writer.size, writer.edge)
        for filled in writer.extend(leaves[first : first + 999]):
            assert len(filled.data) == 8192
            stored[filled.level, filled.number] = filled.data
    expected = list(tree.tiles_of(size))
    full = {(level, number) for level, number, width in expected if width == 256}
    assert set(stored) == full
    edge = writer.edge
    for level, _number, width in expected:
        if width < 256:
            assert len(edge[level]) == width * 32
    if size == 70_000:  # the example of c2sp.org/tlog-tiles
        partial = [(level, number, width) for level, number, width in expected if width < 256]
        assert (len(full), partial) == (274, [(0, 273, 112), (1, 1, 17), (2, 0, 1)])
    if size:
        read = lambda level, number, _width: stored.get((level, number)) or edge[level]  # noqa: E731
        assert tree.root_from_tiles(size, read) == frontier(leaves).root()


def test_an_edge_that_does_not_fit_the_size_is_refused() -> None:
    writer = tree.TileWriter()
    writer.extend(hashes(300))
    for size, edge in [(301, writer.edge), (300, writer.edge[:1]), (300, []), (0, writer.edge)]:
        with pytest.raises(ValidationError):
            tree.TileWriter(size, edge)


@pytest.mark.parametrize(
    ("level", "index", "width", "path"),
    [
        (0, 0, 256, "tile/0/000"),
        (0, 1234067, 256, "tile/0/x001/x234/067"),
        (1, 999, 17, "tile/1/999.p/17"),
        (63, 1000, 1, "tile/63/x001/000.p/1"),
        ("entries", 273, 112, "tile/entries/273.p/112"),
    ],
)
def test_tile_paths(level: Any, index: int, width: int, path: str) -> None:
    assert tree.tile_path(level, index, width) == path
    assert tree.parse_tile_path(path) == (level, index, width)


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0", "tile/00/000", "tile/64/000", "tile/-1/000", "tile/0/x000/001", "tile/0/001/002", "tile/0/x001",
        "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000/", "/tile/0/000", "tile/entry/000",
        "tile/0/000\n", "tile/0/٠٠٠", "tile/0/../000",
    ],
)  # fmt: skip
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        tree.parse_tile_path(path)


@settings(max_examples=40, deadline=None)
@given(entries=st.lists(st.binary(max_size=300), max_size=256), cut=st.integers(1, 300))
def test_entry_bundles(entries: list[bytes], cut: int) -> None:
    data = tree.encode_bundle(entries)
    assert tree.decode_bundle(data) == entries
    with pytest.raises(ValidationError):
        tree.decode_bundle(data + b"\0")
    if len(data) > 1 and entries[-1]:
        with pytest.raises(ValidationError):
            tree.decode_bundle(data[: -min(cut, len(entries[-1]))])


def test_a_bundle_holds_at_most_a_tile_of_entries_of_16_bits() -> None:
    with pytest.raises(ValidationError):
        tree.decode_bundle(tree.encode_bundle([b""] * 257))
    with pytest.raises(ValidationError):
        tree.encode_bundle([bytes(65_536)])


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """A place and a size, often where subtrees and tiles end."""
    near = st.sampled_from([1, 2, 3, 7, 8, 255, 256, 257, 511, 512, 513, 700])
    size = draw(st.one_of(near, st.integers(1, 700)))
    return draw(st.integers(0, size - 1)), size


ALL = hashes(700)
PREFIX_ROOTS: dict[int, bytes] = {}


def root_of(size: int) -> bytes:
    if size not in PREFIX_ROOTS:
        PREFIX_ROOTS[size] = frontier(ALL[:size]).root()
    return PREFIX_ROOTS[size]


@settings(max_examples=120, deadline=None)
@given(place=sizes(), data=st.data())
def test_inclusion(place: tuple[int, int], data: st.DataObject) -> None:
    index, size = place
    reads: list[tuple[int, int]] = []
    path = tree.inclusion_proof(index, size, reader(ALL[:size], reads))
    assert len(reads) == len(set(reads)) <= 4
    root, value = root_of(size), ALL[index]
    assert tree.verify_inclusion(value, index, size, path, root)
    for other in {index - 1, index + 1, index ^ 1, size - 1, size, -1} - {index}:
        assert not tree.verify_inclusion(value, other, size, path, root)
    assert not tree.verify_inclusion(value, index, size, [*path, root], root)
    assert not tree.verify_inclusion(value, index, size, [value, *path], root)
    for gone in range(len(path)):
        assert not tree.verify_inclusion(value, index, size, path[:gone] + path[gone + 1 :], root)
    if path:
        turned = data.draw(st.integers(0, len(path) - 1))
        for changed in (bytes([path[turned][0] ^ 1]) + path[turned][1:], path[turned][:31], path[turned] + b"\0", b""):
            assert not tree.verify_inclusion(value, index, size, [*path[:turned], changed, *path[turned + 1 :]], root)
    assert not tree.verify_inclusion(root_of(size + 1) if size < 700 else value[::-1], index, size, path, root)


@settings(max_examples=120, deadline=None)
@given(place=sizes(), data=st.data())
def test_consistency(place: tuple[int, int], data: st.DataObject) -> None:
    first, second = place[0] + 1, place[1]
    reads: list[tuple[int, int]] = []
    path = tree.consistency_proof(first, second, reader(ALL[:second], reads))
    assert len(reads) == len(set(reads)) <= 4
    before, after = root_of(first), root_of(second)
    assert tree.verify_consistency(first, second, path, before, after)
    assert not tree.verify_consistency(first, second, [*path, after], before, after)
    assert not tree.verify_consistency(first, second, [before, *path], before, after)
    for gone in range(len(path)):
        assert not tree.verify_consistency(first, second, path[:gone] + path[gone + 1 :], before, after)
    forged = bytes([before[0] ^ 1]) + before[1:]
    assert not tree.verify_consistency(first, second, path, forged, after)
    if first < second:
        assert not tree.verify_consistency(first, second, path, before, forged)
        assert not tree.verify_consistency(second, first, path, after, before)
        turned = data.draw(st.integers(0, len(path) - 1))
        changed = [*path[:turned], path[turned][::-1], *path[turned + 1 :]]
        assert not tree.verify_consistency(first, second, changed, before, after)


@pytest.mark.parametrize(
    ("first", "second", "path", "before", "after", "holds"),
    [
        (0, 5, [], tree.EMPTY_ROOT, root_of(5), True),
        (0, 0, [], tree.EMPTY_ROOT, tree.EMPTY_ROOT, True),
        (0, 5, [], root_of(5), root_of(5), False),
        (0, 5, [root_of(5)], tree.EMPTY_ROOT, root_of(5), False),
        (5, 5, [root_of(5)], root_of(5), root_of(5), False),
        (4, 5, [], root_of(4), root_of(5), False),
        (3, 5, [], root_of(3), root_of(5), False),
        (-1, 5, [], root_of(3), root_of(5), False),
    ],
)
def test_consistency_at_the_ends(
    first: int, second: int, path: list[bytes], before: bytes, after: bytes, holds: bool
) -> None:
    assert tree.verify_consistency(first, second, path, before, after) is holds


def test_a_pair_of_leaf_hashes_is_no_leaf() -> None:
    """64 bytes that are two hashes make a node, not a leaf: the prefixes keep them apart."""
    leaves = hashes(4)
    node = tree.node_hash(leaves[0], leaves[1])
    assert leaf(leaves[0] + leaves[1]) != node
    path = [tree.node_hash(leaves[2], leaves[3])]
    assert not tree.verify_inclusion(leaf(leaves[0] + leaves[1]), 0, 4, path, frontier(leaves).root())
    assert not tree.verify_inclusion(node, 0, 4, path, frontier(leaves).root())


@pytest.mark.parametrize(
    "ask",
    [
        lambda read: tree.inclusion_proof(5, 5, read),
        lambda read: tree.inclusion_proof(-1, 5, read),
        lambda read: tree.consistency_proof(6, 5, read),
        lambda read: tree.consistency_proof(-1, 5, read),
    ],
)
def test_proofs_of_what_is_not_there_are_refused(ask: Callable[[tree.ReadTile], object]) -> None:
    with pytest.raises(ValidationError):
        ask(reader(hashes(5)))


@pytest.mark.parametrize("length", [0, 31, 4 * 32, 6 * 32])
def test_a_tile_of_the_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(ValidationError, match=r"tile/0/000\.p/5"):
        tree.inclusion_proof(2, 5, lambda *_place: bytes(length))


def test_a_full_tile_may_stand_for_a_partial_one() -> None:
    leaves = hashes(300)
    whole = b"".join(leaves[:256])
    path = tree.inclusion_proof(3, 5, lambda *_place: whole)
    assert tree.verify_inclusion(leaves[3], 3, 5, path, frontier(leaves[:5]).root())
