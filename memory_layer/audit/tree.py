"""The Merkle tree over a log's entries: RFC 6962 section 2.1, with SHA-256, kept as tiles (c2sp.org/tlog-tiles).

A leaf hash is the ``hash`` of an entry, as 32 bytes. Proofs are verified as RFC 9162 sections 2.1.3.2 and 2.1.4.2 say.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from memory_layer.errors import Problem, ValidationError

HASH_BYTES: Final = 32
TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 256
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
MAX_LEVEL: Final = 63
MAX_PROOF: Final = 64  # hashes; a tree of 2^63 leaves needs 63

_LARGEST_CHUNK: Final = 12  # log2 of the leaves that ``extend`` hashes level by level at a time

ReadTile = Callable[[int, int, int], bytes]
"""``read_tile(level, index, width)``: the first ``width`` hashes (32 bytes each) of a tile, or all 256 of it."""


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\1" + left + right).digest()


def _halve(hashes: Sequence[bytes]) -> list[bytes]:
    """The next level of a row of hashes of even length."""
    sha256, pairs = hashlib.sha256, iter(hashes)
    return [sha256(b"\1" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]


def _perfect_root(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of hashes."""
    while len(hashes) > 1:
        hashes = _halve(hashes)
    return hashes[0]


def subtrees(start: int, leaves: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """(log2 of the width, root) of the perfect subtrees that leaves from place ``start`` of a tree fill, from the left."""
    found, place, count = [], 0, len(leaves)
    while place < count:
        # The largest perfect subtree that may begin here and that the leaves fill.
        height = min((count - place).bit_length() - 1, _LARGEST_CHUNK)
        if at := start + place:
            height = min(height, (at & -at).bit_length() - 1)
        found.append((height, _perfect_root(leaves[place : place + (1 << height)])))
        place += 1 << height
    return found


class Frontier:
    """A tree that only grows: its size and the roots of its perfect subtrees, at most one for each power of two."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []  # the largest subtree first

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash (32 bytes)."""
        self.push(leaf, 0)

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add leaf hashes (32 bytes each) in order; about three times as fast as one at a time."""
        for height, root in subtrees(self.size, leaves):
            self.push(root, height)

    def push(self, peak: bytes, height: int) -> None:
        """Add a perfect subtree of 2^``height`` leaves by its root; the size must be a multiple of its width."""
        peaks, carry = self._peaks, self.size >> height
        while carry & 1:
            peak = hashlib.sha256(b"\1" + peaks.pop() + peak).digest()
            carry >>= 1
        peaks.append(peak)
        self.size += 1 << height

    def root(self) -> bytes:
        """The Merkle tree hash, 32 bytes; of the empty tree SHA-256 of nothing."""
        if not self._peaks:
            return EMPTY_ROOT
        *others, root = self._peaks
        for peak in reversed(others):
            root = node_hash(peak, root)
        return root

    def dumps(self) -> bytes:
        """The size in 8 bytes, big-endian, then the subtree roots, the largest subtree first."""
        return self.size.to_bytes(8, "big") + b"".join(self._peaks)

    @classmethod
    def loads(cls, data: bytes) -> Frontier:
        """The opposite of ``dumps``. Raises ValidationError when the length does not fit the size."""
        size = int.from_bytes(data[:8], "big")
        if len(data) != 8 + HASH_BYTES * size.bit_count():
            raise _misfit("frontier", "is not the size in 8 bytes and one hash for each of its set bits")
        frontier = cls()
        frontier.size = size
        frontier._peaks = [data[place : place + HASH_BYTES] for place in range(8, len(data), HASH_BYTES)]
        return frontier


# --- Tiles ---------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """A full tile: 256 hashes of one level, 8,192 bytes. Level 0 holds leaf hashes, each other one the roots of full tiles."""

    level: int
    number: int
    data: bytes


class TileWriter:
    """Cuts a growing log into full tiles. Its state is the right edge: the hashes of each level's partial tile."""

    __slots__ = ("_edge", "size")

    def __init__(self, size: int = 0, edge: Iterable[bytes] = ()) -> None:
        """``edge`` as the property of that name gave it at ``size`` leaves. Raises ValidationError when the two do not fit."""
        self.size = size
        self._edge = [bytearray(hashes) for hashes in edge]
        for level in range(max(len(self._edge), -(-size.bit_length() // TILE_HEIGHT))):
            held = len(self._edge[level]) if level < len(self._edge) else 0
            if held != (size >> TILE_HEIGHT * level) % TILE_WIDTH * HASH_BYTES:
                raise _misfit("edge", f"does not fit a tree of {size} leaves at level {level}")

    @property
    def edge(self) -> list[bytes]:
        """The partial tile of each level, from level 0 up; empty where the last tile is full."""
        return [bytes(hashes) for hashes in self._edge]

    def extend(self, leaves: Iterable[bytes]) -> list[Tile]:
        """Add leaf hashes in order. Returns the tiles that this filled, each level's in order and lower ones first."""
        filled: list[Tile] = []
        for leaf in leaves:
            self.size += 1
            self._add(0, leaf, filled)
        return filled

    def _add(self, level: int, value: bytes, filled: list[Tile]) -> None:
        if level == len(self._edge):
            self._edge.append(bytearray())
        hashes = self._edge[level]
        hashes += value
        if len(hashes) == TILE_WIDTH * HASH_BYTES:
            tile = Tile(level, (self.size >> TILE_HEIGHT * (level + 1)) - 1, bytes(hashes))
            hashes.clear()
            filled.append(tile)
            self._add(level + 1, tile_root(tile.data), filled)


def tile_root(data: bytes) -> bytes:
    """The Merkle tree hash over a full tile: what the level above holds for it."""
    if len(data) != TILE_WIDTH * HASH_BYTES:
        raise _misfit("tile", f"is not {TILE_WIDTH} hashes of {HASH_BYTES} bytes")
    return _perfect_root([data[place : place + HASH_BYTES] for place in range(0, len(data), HASH_BYTES)])


def tile_width(level: int, index: int, size: int) -> int:
    """How many hashes a tile has in a tree of ``size`` leaves: 1 to 256, or 0 where there is none."""
    return max(0, min(TILE_WIDTH, (size >> TILE_HEIGHT * level) - TILE_WIDTH * index))


def tiles_of(size: int) -> Iterator[tuple[int, int, int]]:
    """Level, index and width of every tile of a tree of ``size`` leaves."""
    level = 0
    while size >> TILE_HEIGHT * level:
        for index in range(-(-(size >> TILE_HEIGHT * level) // TILE_WIDTH)):
            yield level, index, tile_width(level, index, size)
        level += 1


def tile_path(level: int | Literal["entries"], index: int, width: int = TILE_WIDTH) -> str:
    """``tile/<L>/<N>[.p/<W>]``: 1234067 is written x001/x234/067, and the width only of a partial tile."""
    digits = f"{index:d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[place : place + 3] for place in range(0, len(digits), 3)]
    number = "/".join([*("x" + group for group in groups[:-1]), groups[-1]])
    return f"tile/{level}/{number}" + (f".p/{width}" if width != TILE_WIDTH else "")


_PATH: Final = re.compile(
    r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII
)


def parse_tile_path(path: str) -> tuple[int | Literal["entries"], int, int]:
    """Level (or "entries"), index and width. Raises ValidationError unless ``tile_path`` writes them so."""
    match = _PATH.fullmatch(path)
    if match is not None:
        level: int | Literal["entries"] = "entries" if match[1] == "entries" else int(match[1])
        index, width = int(match[2].replace("/", "").replace("x", "")), int(match[3] or TILE_WIDTH)
        in_range = width <= TILE_WIDTH and (level == "entries" or level <= MAX_LEVEL)
        if in_range and tile_path(level, index, width) == path:
            return level, index, width
    raise _misfit("path", "is not tile/<L>/<N>[.p/<W>] as c2sp.org/tlog-tiles writes it")


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """An entry bundle: each entry after its length in 2 bytes, big-endian."""
    parts = []
    for entry in entries:
        if len(entry) >= 1 << 16:
            raise _misfit("entry", "has more than 65,535 bytes")
        parts += [len(entry).to_bytes(2, "big"), entry]
    return b"".join(parts)


def decode_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle, at most 256. Raises ValidationError when it is cut short or holds more."""
    entries: list[bytes] = []
    place = 0
    while place < len(data) and len(entries) < TILE_WIDTH:
        end = place + 2 + int.from_bytes(data[place : place + 2], "big")
        entries.append(data[place + 2 : end])
        place = end
    if place != len(data):
        raise _misfit("bundle", "is not at most 256 entries, each after its length")
    return entries


# --- Proofs --------------------------------------------------------------------------------------------------------


class _Subtrees:
    """Subtree hashes of a tree of ``size`` leaves, read from tiles; each tile is read once."""

    def __init__(self, size: int, read_tile: ReadTile) -> None:
        self.size = size
        self.read_tile = read_tile
        self.tiles: dict[tuple[int, int], bytes] = {}

    def range_hash(self, begin: int, end: int) -> bytes:
        """MTH(D[begin:end]) where ``begin`` is a multiple of a power of two not below ``end - begin``."""
        peaks = []
        while begin < end:
            height = (end - begin).bit_length() - 1
            peaks.append(self._perfect(begin, height))
            begin += 1 << height
        root = peaks.pop()
        while peaks:
            root = node_hash(peaks.pop(), root)
        return root

    def _perfect(self, begin: int, height: int) -> bytes:
        level, rest = divmod(height, TILE_HEIGHT)
        index, offset = divmod(begin >> TILE_HEIGHT * level, TILE_WIDTH)
        data = self.tiles.get((level, index))
        if data is None:
            width = tile_width(level, index, self.size)
            data = self.read_tile(level, index, width)
            if len(data) not in (width * HASH_BYTES, TILE_WIDTH * HASH_BYTES):
                raise _misfit(tile_path(level, index, width), f"has {len(data)} bytes, not {width} hashes")
            self.tiles[level, index] = data
        places = range(offset * HASH_BYTES, (offset + (1 << rest)) * HASH_BYTES, HASH_BYTES)
        return _perfect_root([data[place : place + HASH_BYTES] for place in places])


def _split(count: int) -> int:
    """The largest power of two below ``count``."""
    return 1 << (count - 1).bit_length() - 1


def root_from_tiles(size: int, read_tile: ReadTile) -> bytes:
    """The Merkle tree hash of a tree of ``size`` leaves, from at most one tile of each level."""
    return _Subtrees(size, read_tile).range_hash(0, size) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, read_tile: ReadTile) -> list[bytes]:
    """The audit path of leaf ``index`` (from 0) in a tree of ``size`` leaves, the leaf's sibling first.

    Reads at most two tiles of each level. Raises ValidationError when there is no such leaf or a tile has the wrong length.
    """
    if not 0 <= index < size:
        raise _misfit("index", f"{index} is not below the size {size}")
    tree, begin, end, path = _Subtrees(size, read_tile), 0, size, []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(tree.range_hash(middle, end))
            end = middle
        else:
            path.append(tree.range_hash(begin, middle))
            begin = middle
    return path[::-1]


def consistency_proof(first: int, second: int, read_tile: ReadTile) -> list[bytes]:
    """What shows that the tree of ``first`` leaves is a prefix of the one of ``second``; empty when either holds trivially.

    Reads at most two tiles of each level of the larger tree. Raises ValidationError when ``first`` is the larger one.
    """
    if not 0 <= first <= second:
        raise _misfit("size", f"{first} is not between 0 and {second}")
    if first in (0, second):
        return []
    tree, begin, end, path = _Subtrees(second, read_tile), 0, second, []
    while first != end:
        middle = begin + _split(end - begin)
        if first <= middle:
            path.append(tree.range_hash(middle, end))
            end = middle
        else:
            path.append(tree.range_hash(begin, middle))
            begin = middle
    if begin:  # else the smaller tree is itself a subtree, whose root the verifier has
        path.append(tree.range_hash(begin, end))
    return path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether ``path`` leads from leaf hash ``leaf`` at ``index`` to ``root`` of ``size`` leaves (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or any(len(value) != HASH_BYTES for value in (leaf, root, *path)):
        return False
    place, last, value = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if place & 1 or place == last:
            value = node_hash(sibling, value)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and value == root


def verify_consistency(first: int, second: int, path: Sequence[bytes], first_root: bytes, second_root: bytes) -> bool:
    """Whether the tree of ``first`` leaves is a prefix of that of ``second`` leaves (RFC 9162, 2.1.4.2)."""
    if not 0 <= first <= second or any(len(value) != HASH_BYTES for value in (first_root, second_root, *path)):
        return False
    if first == second:
        return not path and first_root == second_root
    if first == 0:
        return not path and first_root == EMPTY_ROOT
    if first.bit_count() == 1:
        path = [first_root, *path]
    if not path:
        return False
    place, last = first - 1, second - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    before = after = path[0]
    for value in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            before, after = node_hash(value, before), node_hash(value, after)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            after = node_hash(after, value)
        place, last = place >> 1, last >> 1
    return last == 0 and before == first_root and after == second_root


def _misfit(name: str, problem: str) -> ValidationError:
    return ValidationError(f"The tree cannot use this: {name} {problem}.", details=[Problem(name, problem)])
