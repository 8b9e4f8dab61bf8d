"""Which tiles are fetched for a proof: all that it reads, in a tree of any size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memory_layer.audit.tree import HASH_BYTES, consistency_proof, inclusion_proof, root_from_tiles
from memory_layer.service.tiles import needed

SIZES = st.one_of(st.integers(1, 70_000), st.integers(1, 2**40), st.integers(0, 40).map(lambda power: 2**power))


class Reads:
    """Tiles of zeros; remembers which were asked for."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int, int]] = set()

    def __call__(self, level: int, index: int, width: int) -> bytes:
        self.seen.add((level, index, width))
        return bytes(width * HASH_BYTES)


@given(SIZES, st.data())
def test_all_that_is_read_is_fetched_and_not_much_more(size: int, data: st.DataObject) -> None:
    leaf = data.draw(st.integers(0, size - 1))
    read = Reads()
    root_from_tiles(size, read)
    assert read.seen <= set(needed(size))
    inclusion_proof(leaf, size, read)
    assert read.seen <= set(needed(size, leaf))
    first = data.draw(st.integers(0, size))
    read = Reads()
    consistency_proof(first, size, read)
    tiles = needed(size, max(first - 1, 0))
    assert read.seen <= set(tiles)
    assert len(tiles) <= 2 * -(-size.bit_length() // 8)
