"""The one form of a JSON document: its members, checked one by one, with errors that name the document and the member."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from memory_layer.audit.entry import TIME, is_time
from memory_layer.errors import ValidationError

_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Form:
    """``document``: what it should be, as its errors say: "This is not <document>: ...". Every check raises ValidationError."""

    document: str

    def wrong(self, problem: str) -> ValidationError:
        """Why a document cannot be used."""
        return ValidationError(f"This is not {self.document}: {problem}.")

    def members(self, value: Any, names: str, what: str) -> dict[str, Any]:
        if not isinstance(value, dict) or sorted(value) != sorted(names.split()):
            raise self.wrong(f"{what} does not have exactly the members {names}")
        return value

    def integer(self, value: Any, what: str) -> int:
        if type(value) is not int or not 0 <= value < 10**15:
            raise self.wrong(f"{what} is not an integer from 0")
        return value

    def hash(self, value: Any, what: str) -> str:
        if not isinstance(value, str) or _HASH.fullmatch(value) is None:
            raise self.wrong(f"{what} is not a hash")
        return value

    def text(self, value: Any, what: str) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= 16_384:
            raise self.wrong(f"{what} is not text")
        return value

    def time(self, value: Any, what: str) -> str:
        if not isinstance(value, str) or re.fullmatch(TIME, value) is None or not is_time(value):
            raise self.wrong(f"{what} is not a time")
        return value
