"""Strict JSON in, RFC 8785 out; the rfc8785 package is the oracle."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from memory_layer import canonical
from memory_layer.errors import MalformedJson, ValidationError
from memory_layer.service import evidence

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)
KEPT_NUMBERS = (
    st.integers(-(2**53) + 1, 2**53 - 1)
    | st.just(0.0)
    | st.floats(1e-300, 2.0**53 - 1)
    | st.floats(-(2.0**53) + 1, -1e-300)
)
KEPT_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
KEPT = st.recursive(
    st.none() | st.booleans() | KEPT_NUMBERS | KEPT_TEXT,
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(KEPT_TEXT, inner),
    max_leaves=40,
)


@given(VALUES)
def test_bytes_are_the_oracle_s(value: Any) -> None:
    assert canonical.dumps(value) == rfc8785.dumps(value)


@given(VALUES)
def test_so_are_those_that_a_faster_encoder_writes(value: Any) -> None:
    assert canonical.dumps(value, evidence._encode) == rfc8785.dumps(value)


def test_every_character_is_spelled_alike() -> None:
    for start in range(0, 0x110000, 0x800):
        if start == 0xD800:
            continue
        text = "".join(map(chr, range(start, start + 0x800)))
        assert canonical.dumps({"k": text}, evidence._encode) == canonical.dumps({"k": text})
    with pytest.raises(ValidationError, match="a lone surrogate"):
        canonical.dumps({"k": "\ud800"}, evidence._encode)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_the_oracle_s(value: float) -> None:
    assert canonical.dumps(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, b"1"),
        (-0.0, b"0"),
        (0.0, b"0"),
        (1e21, b"1e+21"),
        (1e20, b"100000000000000000000"),
        (123456789012345680.0, b"123456789012345680"),
        (1e-7, b"1e-7"),
        (1e-6, b"0.000001"),
        (1.5e-5, b"0.000015"),
        (-1.5e-9, b"-1.5e-9"),
        (5e-324, b"5e-324"),
        (1.7976931348623157e308, b"1.7976931348623157e+308"),
        (333333333.33333329, b"333333333.3333333"),
        (9007199254740991, b"9007199254740991"),
        ('\u20ac$\u000f\nA\'B"\\\\"/\x7f\u2028', '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/\x7f\u2028"'.encode()),
        ({"\ufb33": 1, "\U0001f600": 2}, '{"\U0001f600":2,"\ufb33":1}'.encode()),
        ({"b": [True, False, None], "a": {}}, b'{"a":{},"b":[true,false,null]}'),
        ((1, 2), b"[1,2]"),
    ],
)
def test_vectors(value: Any, expected: bytes) -> None:
    assert canonical.dumps(value) == expected
    if not isinstance(value, tuple):
        assert rfc8785.dumps(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        2**53,
        -(2**53),
        math.nan,
        math.inf,
        "\ud800",
        {"\udfff": 1},
        {1: 2},
        {None: 2},
        {"a": 1, 2: 3},
        b"x",
        {"a": object()},
        {1, 2},
    ],
)
def test_what_has_no_bytes_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        canonical.dumps(value)


def test_depth() -> None:
    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return value

    assert canonical.loads(canonical.dumps(nested(64))) == nested(64)
    for work in (canonical.dumps, canonical.check):
        with pytest.raises(ValidationError, match="64"):
            work(nested(65))
    for text in (b"[" * 65 + b"]" * 65, b'{"a":' * 65 + b"1" + b"}" * 65, b"[" * 100_000 + b"]" * 100_000):
        with pytest.raises(ValidationError, match="64"):
            canonical.loads(text)
    loop: list[Any] = []
    loop.append(loop)
    for work in (canonical.dumps, canonical.check):
        with pytest.raises(ValidationError):
            work(loop)


@given(KEPT)
def test_round_trip(value: Any) -> None:
    canonical.check(value)
    data = canonical.dumps(value)
    assert canonical.loads(data) == value
    assert canonical.dumps(canonical.loads(data)) == data
    assert canonical.loads(json.dumps(value, indent=1).encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"'a'",
        b"{a:1}",
        b'{"a":1}x',
        b'"\x01"',
        b'"\n"',
        b'"\\x"',
        b'"\\u12"',
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        "{}".encode("utf-16"),
        b"tru",
        b"1\x0b",
        b"\xa01",
    ],
)
def test_no_json_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedJson):
        canonical.loads(data)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b'{"a":1,"a":1}', "body"),
        (b'{"x":[{"b":1,"c":2,"\\u0062":3}]}', "x.0"),
        (b"NaN", "body"),
        (b'{"a":NaN}', "a"),
        (b'{"a":[Infinity]}', "a.0"),
        (b'{"a":-Infinity}', "a"),
        (b'{"a":9007199254740992}', "a"),
        (b'{"a":-9007199254740992}', "a"),
        (b'{"a":9007199254740992.0}', "a"),
        (b'{"a":9.007199254740992e15}', "a"),
        (b'{"a":1e300}', "a"),
        (b'{"a":1e400}', "a"),
        (b'{"a":-1e400}', "a"),
        (b'{"a":1e-301}', "a"),
        (b'{"a":-1E-301}', "a"),
        (b'{"a":1e-400}', "a"),
        (b'{"a":1E-0400}', "a"),
        (b'{"a":0.' + b"0" * 290 + b"1e-99}", "a"),
        (b'{"a":0.' + b"0" * 400 + b"1}", "a"),
        (b'{"a":' + b"9" * 5000 + b"}", "a"),
        (b'{"a":"\\ud800"}', "a"),
        (b'{"a":["\\udc00\\ud800"]}', "a.0"),
        (b'{"\\ud800":1}', "body"),
        (b'{"a":{"b\\u0000":1}}', "a"),
        (b'{"a":"x\\u0000"}', "a"),
    ],
)
def test_json_that_is_not_kept_is_refused(data: bytes, path: str) -> None:
    with pytest.raises(ValidationError) as caught:
        canonical.loads(data)
    assert [problem.path for problem in caught.value.details] == [path]


@pytest.mark.parametrize("bad", ["NaN", "1e300", "1e400", "1e-301", "1e-999", '"\\ud800"', '{"a":1,"a":1}', "9" * 5000])
@pytest.mark.parametrize("place", [0, 700, 1535])
def test_one_bad_element_of_a_long_array(bad: str, place: int) -> None:
    vector = [str(n / 1536) for n in range(1536)]
    vector[place] = bad
    data = ('{"embedding":{"vector":[' + ",".join(vector) + "]}}").encode()
    with pytest.raises(ValidationError) as caught:
        canonical.loads(data)
    assert caught.value.details[0].path.startswith(f"embedding.vector.{place}")


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, 2.0**53, -1e300, 1e-310, 2**53, 10**400, "\0", object()]
)
@pytest.mark.parametrize("size", [1, 15, 16, 1536])
def test_check_of_a_parsed_value(bad: Any, size: int) -> None:
    vector: list[Any] = [n / 2000 for n in range(size)]
    canonical.check({"vector": vector})
    canonical.check([0.0, 0, -0.0, True, None, 5] * size)
    vector[size // 2] = bad
    with pytest.raises(ValidationError) as caught:
        canonical.check({"vector": vector}, "embedding")
    assert caught.value.details[0].path == f"embedding.vector.{size // 2}"


def test_numbers_at_the_edge_are_kept() -> None:
    for text in (
        "9007199254740991",
        "-9007199254740991.0",
        "1e-300",
        "-1e-300",
        "0e-999",
        "0.0",
        "-0",
        "1e-299",
        "0E999",
    ):
        assert canonical.loads(text.encode()) == float(text)
    assert canonical.loads(b'"\\ud83d\\ude00 \xf0\x9f\x98\x80"') == "\U0001f600 \U0001f600"


@given(st.binary(max_size=60))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        value = canonical.loads(data)
    except (MalformedJson, ValidationError):
        return
    canonical.check(value)


@given(st.text('[]{}",:.eE+-019 \\u0d8aNInf', max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        value = canonical.loads(text.encode())
    except (MalformedJson, ValidationError):
        return
    canonical.check(value)
    assert json.loads(text) == value


@pytest.mark.parametrize("size", [511, 512, 513, 1024, 5000])
def test_large_values_are_encoded_in_pieces_and_to_the_same_bytes(size: int) -> None:
    lists = [[n] for n in range(size)]
    keys = {f"k{n}": {"n": [n]} for n in reversed(range(size))}
    for value in (
        lists,
        keys,
        {"b": lists, "a": keys, "c": "é"},
        {"a": {"b": {"c": lists}}},
        [lists, keys],
        {"é": lists},
    ):
        expected = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
        assert canonical.dumps(value) == expected
