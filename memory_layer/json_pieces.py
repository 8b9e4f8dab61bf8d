"""A large JSON document, read by many short calls of the C scanner instead of one.

One call keeps the interpreter from all other threads until it returns: for 2 MB of brackets that is a tenth of a second, in which no health
check is answered. So a large array or object is read in runs of whole elements, each a few kilobytes, and the interpreter is free between
two of them. Runs are found by trying: a piece that ends before a comma and parses, with brackets put around it, is a run.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

BATCH_SIZE: Final = 16 * 1024  # characters that one call of the scanner reads
MAX_FAILED: Final = 400  # pieces that may turn out to be no run: deep towers of brackets would cost time without end
_space: Final = re.compile(r"[ \t\n\r]*").match
_CLOSES: Final = {"[": "]", "{": "}"}


class _Whole(Exception):
    """The document has to be read in one go."""


def decode(decoder: json.JSONDecoder, text: str) -> Any:
    """What ``decoder.decode(text)`` gives or raises. Whatever is wrong with a document is found by that call."""
    if len(text) <= 4 * BATCH_SIZE:
        return decoder.decode(text)
    try:
        return _Reader(decoder, text).document()
    except (_Whole, ValueError, RecursionError):
        return decoder.decode(text)


class _Reader:
    def __init__(self, decoder: json.JSONDecoder, text: str) -> None:
        self._once: Any = decoder.scan_once  # type: ignore[attr-defined]
        self._text = text
        self._failed = 0

    def document(self) -> Any:
        value, end = self._value(self._skip(0))
        if self._skip(end) != len(self._text):
            raise _Whole
        return value

    def _skip(self, at: int) -> int:
        found = _space(self._text, at)
        assert found is not None  # noqa: S101 - it matches nothing as well
        return found.end()

    def _value(self, at: int) -> tuple[Any, int]:
        """A value and where it ends."""
        kind = self._text[at : at + 1]
        if kind == "[":
            return self._array(at + 1)
        if kind == "{":
            return self._object(at + 1)
        try:
            value, end = self._once(self._text, at)
        except StopIteration:
            raise _Whole from None
        return value, end

    def _array(self, at: int) -> tuple[list[Any], int]:
        values: list[Any] = []
        at = self._skip(at)
        if self._text.startswith("]", at):
            return values, at + 1
        while True:
            run, end = self._run(at, "[")
            if run is None:
                run, end = self._elements(at)
            if not run:
                value, end = self._value(at)
                run = [value]
            values += run
            at, more = self._after(end, "]")
            if not more:
                return values, at

    def _object(self, at: int) -> tuple[dict[str, Any], int]:
        members: dict[str, Any] = {}
        at = self._skip(at)
        if self._text.startswith("}", at):
            return members, at + 1
        while True:
            run, end = self._run(at, "{")
            if run is None:
                run, end = self._member(at)
            size = len(members) + len(run)
            members.update(run)
            if len(members) != size:  # a repeated key
                raise _Whole
            at, more = self._after(end, "}")
            if not more:
                return members, at

    def _after(self, end: int, close: str) -> tuple[int, bool]:
        """Where to go on behind an element, and whether there is another."""
        at = self._skip(end)
        mark = self._text[at : at + 1]
        if mark == close:
            return at + 1, False
        if mark != ",":
            raise _Whole
        return self._skip(at + 1), True

    def _run(self, at: int, kind: str) -> tuple[Any, int]:
        """As many whole elements as one piece holds, and where they end; None where none of its last commas ends a run."""
        piece = self._text[at : at + BATCH_SIZE]
        tried = -1
        for mark, width in (("},", 1), ("],", 1), (",", 0)):
            cut = piece.rfind(mark)
            if cut < 0 or cut + width == tried:
                continue
            tried = cut + width
            try:
                found, end = self._once(kind + piece[:tried] + _CLOSES[kind], 0)
            except (StopIteration, json.JSONDecodeError):
                self._fail()
                continue
            if not found or type(found) is not (list if kind == "[" else dict):
                raise _Whole
            return found, at + end - 2  # before the bracket that ended it, the document's own if that came first
        return None, at

    def _elements(self, at: int) -> tuple[list[Any], int]:
        """Elements one by one, as long as one piece holds them and what follows each."""
        piece, values, place, end = self._text[at : at + BATCH_SIZE], [], 0, 0
        while True:
            try:
                value, stop = self._once(piece, place)
            except (StopIteration, json.JSONDecodeError):
                break
            found = _space(piece, stop)
            follows = found.end() if found is not None else stop
            if piece[follows : follows + 1] not in (",", "]"):
                break
            values.append(value)
            end = stop
            if piece[follows] == "]":
                break
            found = _space(piece, follows + 1)
            place = found.end() if found is not None else follows + 1
        if not values:
            self._fail()
        return values, at + end

    def _member(self, at: int) -> tuple[dict[str, Any], int]:
        """One member of an object, whose value may be large."""
        if not self._text.startswith('"', at):
            raise _Whole
        key, end = self._once(self._text, at)
        at = self._skip(end)
        if not self._text.startswith(":", at):
            raise _Whole
        value, end = self._value(self._skip(at + 1))
        return {key: value}, end

    def _fail(self) -> None:
        self._failed += 1
        if self._failed > MAX_FAILED:
            raise _Whole
