"""What a call answers: the JSON object that came, whose members are attributes as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Never, Self, TypeVar, cast, overload

T = TypeVar("T")


class Record(dict[str, Any]):
    """A JSON object of the API, in all respects a dict: ``node["memoryNodeId"]`` is ``node.memory_node_id``.

    Objects inside it that the API describes are records too. Keys that a newer server adds are there without an attribute.
    """

    __slots__ = ()
    _inner: ClassVar[Mapping[str, type[Record]]] = {}

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__(body)
        for key, kind in self._inner.items():
            value = self.get(key)
            if isinstance(value, dict):
                self[key] = kind(value)
            elif isinstance(value, list):
                self[key] = [kind(item) if isinstance(item, dict) else item for item in value]


class Member(Generic[T]):
    """The attribute that reads ``key``: a record or a list of records where ``of`` says so.

    AttributeError where the answer lacks the key; None when it is ``optional``.
    """

    __slots__ = ("_key", "_of", "_optional")

    def __init__(self, key: str, *, of: type[Record] | None = None, optional: bool = False) -> None:
        self._key = key
        self._of = of
        self._optional = optional

    def __set_name__(self, owner: type[Record], name: str) -> None:
        if self._of is not None:
            owner._inner = {**owner._inner, self._key: self._of}

    @overload
    def __get__(self, record: None, owner: type[Record]) -> Self: ...
    @overload
    def __get__(self, record: Record, owner: type[Record]) -> T: ...
    def __get__(self, record: Record | None, owner: type[Record]) -> Self | T:
        if record is None:
            return self
        if self._key not in record and not self._optional:
            raise AttributeError(f"this answer has no {self._key!r}")
        return cast("T", record.get(self._key))  # what the schemas of the API say, checked by nobody here

    def __set__(self, record: Record, value: Never) -> Never:  # no value fits: a type checker refuses it too
        raise AttributeError(f"attributes of an answer are read-only: set [{self._key!r}]")
