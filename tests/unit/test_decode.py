"""The short way for a body's vector: it takes what the strict parser takes, and gives the same."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_layer import aside, canonical
from memory_layer.api import decode, schemas
from memory_layer.errors import MemoryLayerError, PayloadTooLarge, ValidationError

LONG = [float(n) / 7 for n in range(1, 400)]
PACKED = base64.b64encode(np.array(LONG, "<f4").tobytes()).decode()


def strict(data: bytes) -> Any:
    """What the body means by the strict parser alone: (everything but the vector, the vector), or the error's code."""
    try:
        value = canonical.loads(data)
        checked = decode.convert(value, schemas.CreateNodeBody)
        found = None
        if checked.embedding is not None:
            found = decode.vector(checked.embedding.vector, checked.embedding.dimension, "v").tobytes()
            checked.embedding.vector = ""
    except MemoryLayerError as error:
        return error.code
    return checked, found


def short(data: bytes) -> Any:
    try:
        checked = decode.body(data, schemas.CreateNodeBody)
        found = None
        if checked.embedding is not None:
            found = decode.vector(checked.embedding.vector, checked.embedding.dimension, "v").tobytes()
            checked.embedding.vector = ""
    except MemoryLayerError as error:
        return error.code
    return checked, found


def body(vector: str, before: str = "", after: str = "", dimension: int = len(LONG)) -> bytes:
    """A body in JSON text, with more members before and after the embedding."""
    embedding = f'{{"model": "m", "dimension": {dimension}, "vector": {vector}}}'
    return f'{{{before}"owner": "ann", "embedding": {embedding}{after}}}'.encode()


TEXT = json.dumps(LONG)
CASES = [
    body(TEXT),
    body(f'"{PACKED}"'),
    body(TEXT.replace(", ", ",\n\t ")),
    body(TEXT, before='"metadata": {"vector": [1, 2]}, '),
    body(TEXT, after=', "metadata": {"vector": [1, 2]}'),
    body(TEXT, before='"metadata": {"vector": "' + "A" * 4000 + '"}, '),
    body(TEXT, after=f', "embedding": {{"model": "m", "dimension": 2, "vector": {TEXT}}}'),
    body(TEXT + f', "vector": {TEXT}'),
    body(TEXT + ', "\\u0076ector": [1]'),
    body(TEXT, before='"content": "\\"vector\\": [1, 2]", '),
    body(TEXT, before='"content": "vector", '),
    body(TEXT, before='"metadata": {"k": "\\"vector\\": ["}, '),
    body(TEXT.replace("1.0", "true", 1)),
    body(TEXT.replace("1.0", "null", 1)),
    body(TEXT.replace("1.0", '"1"', 1)),
    body(TEXT.replace("1.0", "[1]", 1)),
    body(TEXT.replace("1.0", "01", 1)),
    body(TEXT.replace("1.0", "1.", 1)),
    body(TEXT.replace("1.0", "+1", 1)),
    body(TEXT.replace("1.0", "NaN", 1)),
    body(TEXT.replace("1.0", "1e400", 1)),
    body(TEXT.replace("1.0", "1e-400", 1)),
    body(TEXT.replace("1.0", "1e-301", 1)),
    body(TEXT.replace("1.0", "0." + "0" * 310 + "1", 1)),
    body(TEXT.replace("1.0", "0e-400", 1)),
    body(TEXT.replace("1.0", "-0.0", 1)),
    body(TEXT.replace("1.0", "9007199254740993", 1)),
    body(TEXT.replace("1.0", "9007199254740991", 1)),
    body(TEXT.replace("1.0", "1e30", 1)),
    body(TEXT.replace("1.0", "12345678901234567890123", 1)),
    body("[" + " " * 3000 + "]", dimension=1),
    body("[" + ", ".join(["0.0"] * 900) + "]", dimension=900),
    body(TEXT[:-1]),
    body(TEXT, dimension=7),
    body(f'"{PACKED}="'),
    body(f'"{PACKED[:-1]}"'),
    body('"' + PACKED[:-4] + '\\u0041AAA"'),
    body('"' + PACKED[:9] + "\\n" + PACKED[9:] + '"'),
    body(f'"{PACKED}'),
    TEXT.encode(),
    b'{"vector": ' + TEXT.encode() + b"}",
    b'{"owner": "ann", "vector": ' + TEXT.encode() + b"}",
    b'{"owner": "ann", "metadata": {"vector": ' + TEXT.encode() + b"}}",
    b'{"owner": "ann", "metadata": {"vector": ' + TEXT.encode() + b', "a": 1, "a": 2}}',
    b'{"owner": "ann", "embedding": ' + TEXT.encode() + b"}",
]


@pytest.mark.parametrize("data", CASES, ids=range(len(CASES)))
def test_it_takes_what_the_strict_parser_takes(data: bytes) -> None:
    assert len(data) > 2048
    assert short(data) == strict(data)


def test_it_is_taken_at_all() -> None:
    for data in CASES[:2]:
        checked = decode.body(data, schemas.CreateNodeBody)
        assert checked.embedding is not None
        assert isinstance(checked.embedding.vector, np.ndarray)


@given(st.data())
def test_whatever_is_changed_in_a_body(data: st.DataObject) -> None:
    """Bytes replaced, cut out or put in anywhere, JSON's own signs above all."""
    text = bytearray(data.draw(st.sampled_from(CASES)))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        piece = data.draw(
            st.sampled_from([b'"', b"[", b"]", b"{", b"}", b",", b":", b"e-", b"\\", b'"vector"', b"0", b" "])
        )
        text[place : place + data.draw(st.integers(0, 2))] = piece
    assert short(bytes(text)) == strict(bytes(text))


@given(st.lists(st.floats(allow_nan=False), min_size=300, max_size=320))
def test_any_numbers(numbers: list[float]) -> None:
    data = body(json.dumps(numbers), dimension=len(numbers)) + b" " * 2048
    assert short(data) == strict(data)


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda: decode.convert({"query": "x", "mode": "fuzzy"}, schemas.SearchBody), "mode: 'fuzzy' is not hybrid, keyword or semantic."),
        (lambda: decode.query(b"wait=later", schemas.WaitQuery), "query.wait: 'later' is not indexed."),
    ],
)  # fmt: skip
def test_a_word_that_is_none_of_the_choices_is_answered_with_them(read: Any, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        read()
    assert refused.value.message == says


MANY = aside.MAX_VALUES + 1


@pytest.mark.parametrize(
    "metadata",
    [
        "[" + ",".join(["1"] * MANY) + "]",
        "[" + ",".join(["[[[]]]"] * (MANY // 3 + 1)) + "]",
        "{" + ",".join(f'"{n}":{{}}' for n in range(MANY)) + "}",
        "[" + ",".join(['"\\\\\\","'] * MANY) + "]",
        "[" + ",".join(['""'] * 4 * MANY) + "]",
    ],
    ids=["numbers", "lists", "members", "texts", "empty texts"],
)
def test_a_body_of_too_many_values_is_refused_before_it_is_read(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonical, "loads", lambda _: pytest.fail("it was read"))
    with pytest.raises(PayloadTooLarge, match="100000 JSON values"):
        decode.body(f'{{"owner":"ann","metadata":{{"a":{metadata}}}}}'.encode(), schemas.CreateNodeBody)


@pytest.mark.parametrize("metadata", ["[" + ",".join(["1"] * (MANY - 10)) + "]", '"' + ',[{\\"' * 300_000 + '"'])
def test_many_values_and_long_texts_pass(metadata: str) -> None:
    read = decode.body(f'{{"owner":"ann","metadata":{{"a":{metadata}}}}}'.encode(), schemas.CreateNodeBody)
    assert read.metadata == {"a": json.loads(metadata)}


def test_an_element_of_too_many_values_ends_a_bulk_request() -> None:
    one = '{"owner":"ann","metadata":{"a":[' + ",".join(["[]"] * 600_000) + "]}}"
    with pytest.raises(PayloadTooLarge):
        decode._elements(f"[{one},{one}]".encode())
    few = '{"owner":"ann","metadata":{"a":[' + ",".join(["[]"] * 90_000) + "]}}"
    assert decode._elements(f"[{few},{few}]".encode()) == [few.encode()] * 2
