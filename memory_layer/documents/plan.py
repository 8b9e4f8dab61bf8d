"""What has to be written so that a source's stored passages are those that its file has now. Pure.

Passages that are the same stay, with their ids. What remains is replaced in place, old text by new text in one write, so there is no
moment at which both or neither are found; then passages are created or removed. A hold wins: what is held stays as it is, and is named.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory_layer.documents.passages import Passage, key_of

# What documents say of their passages, apart from the fields of records. Other metadata belong to somebody else, and stay.
_OURS = ("source", "heading", "headings", "frontMatter", "file")


@dataclass(slots=True)
class Stored:
    """A live node that is a passage of a source. ``slot`` None: it has none of this source yet."""

    id: str
    version: int
    embedding_id: str
    slot: int | None
    held: bool
    text: str | None
    metadata: dict[str, Any]
    occurred_at: str | None
    flags: dict[str, Any]
    thread: str | None = None
    position: int | None = None

    @property
    def source(self) -> dict[str, Any]:
        found = self.metadata.get("source")
        return found if isinstance(found, dict) else {}

    @property
    def fields(self) -> tuple[str, ...]:
        found = self.source.get("fields")
        return tuple(found) if isinstance(found, list) else ()


@dataclass(frozen=True, slots=True)
class Placed:
    """A passage and the slot that it has or gets; ``on`` is the node that becomes it, None for a new one. ``changed``: its text does."""

    passage: Passage
    place: int
    slot: int
    on: Stored | None = None
    changed: bool = False


@dataclass(slots=True)
class Plan:
    """``placed`` in the order of the passages. ``removed`` and ``held``: nodes whose text the file no longer has."""

    placed: list[Placed] = field(default_factory=list)
    removed: list[Stored] = field(default_factory=list)
    held: list[Stored] = field(default_factory=list)

    @property
    def slots(self) -> int:
        """One more than the highest slot in use."""
        used = [one.slot for one in self.placed] + [one.slot for one in self.held if one.slot is not None]
        return max(used, default=-1) + 1


def plan(passages: Sequence[Passage], stored: Iterable[Stored]) -> Plan:
    """How the stored passages become these. A held node that has no slot of this source stays where it is, whatever it says."""
    known = sorted(stored, key=lambda one: (_line(one), -1 if one.slot is None else one.slot))
    made = Plan(held=[one for one in known if one.held and one.slot is None])
    free = [one for one in known if not (one.held and one.slot is None)]
    taken: dict[int, Stored] = {}  # place of the passage -> its node
    free = _take(passages, free, taken, exact=True)
    free = _take(passages, free, taken, exact=False)
    made.held += [one for one in free if one.held]
    # The first slot carries what is known of the whole source, so it is the last to be given up.
    loose = deque(sorted((one for one in free if not one.held), key=lambda one: one.slot != 0))
    changed = set()
    for place in range(len(passages)):
        if place not in taken and loose:
            taken[place] = loose.popleft()
            changed.add(place)
    made.removed = list(loose)
    slots = _slots(len(passages), taken, made.held)
    for place, passage in enumerate(passages):
        made.placed.append(Placed(passage, place, slots[place], taken.get(place), place in changed))
    return made


def _take(passages: Sequence[Passage], free: list[Stored], taken: dict[int, Stored], *, exact: bool) -> list[Stored]:
    """Give passages the nodes that say the same, in the order in which both stand; what is left of the nodes."""
    waiting: dict[bytes, deque[Stored]] = {}
    for one in free:
        key = key_of(one.text, one.metadata, one.fields if exact else ())
        waiting.setdefault(key, deque()).append(one)
    for place, passage in enumerate(passages):
        if place not in taken:
            same = waiting.get(key_of(passage.text, passage.metadata, passage.fields if exact else ()))
            if same:
                taken[place] = same.popleft()
    used = {id(one) for one in taken.values()}
    return [one for one in free if id(one) not in used]


def _slots(count: int, taken: dict[int, Stored], held: Iterable[Stored]) -> list[int]:
    """The slot of each passage: the one its node has, else the lowest that is free; one of them has the first, unless a hold keeps it."""
    used = {one.slot for one in held if one.slot is not None}
    slots: dict[int, int] = {}
    for place, node in taken.items():
        if node.slot is not None and node.slot not in used:
            slots[place] = node.slot
            used.add(node.slot)
    lowest = 0
    for place in range(count):
        if place not in slots:
            while lowest in used:
                lowest += 1
            slots[place] = lowest
            used.add(lowest)
    if count and 0 not in used:
        movable = [place for place in range(count) if place not in taken or not taken[place].held]
        if movable:
            slots[movable[0]] = 0
    return [slots[place] for place in range(count)]


def loose_flags(made: Plan) -> dict[str, Any] | None:
    """The ``piiFlags`` of passages whose text is replaced or goes: it may stand in any of the new ones now, so these hide as much."""
    gone = [one.on for one in made.placed if one.changed and one.on is not None] + made.removed + made.held
    flagged = [one.flags for one in gone if one.flags.get("containsPii")]
    return _union(flagged) if flagged else None


def flags_for(one: Stored | None, loose: dict[str, Any] | None) -> dict[str, Any] | None:
    """The flags that a new text needs; None where those that its node has do."""
    if loose is None:
        return None
    mine = one.flags if one is not None and one.flags.get("containsPii") else None
    wanted = loose if mine is None else _union([mine, loose])
    return None if mine is not None and wanted == _union([mine]) else wanted


def _union(flagged: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Flags that hide what any of these does. Those without paths hide everything."""
    found: dict[str, Any] = {"containsPii": True}
    classes = sorted({name for flags in flagged for name in flags.get("classification") or ()})
    if classes:
        found["classification"] = classes
    if all(flags.get("paths") for flags in flagged):
        found["paths"] = sorted({path for flags in flagged for path in flags["paths"]})
    return found


def _line(one: Stored) -> int:
    line = one.source.get("line")
    return line if isinstance(line, int) else 0


def difference(one: Stored, wanted: dict[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7396) that makes these metadata of what a node has, without those that are not ours."""
    ours = {*wanted, *_OURS, *one.fields}
    return _difference({name: value for name, value in one.metadata.items() if name in ours}, wanted)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            inner = _difference(before, value)
            if inner:
                patch[name] = inner
        elif json.dumps(before, sort_keys=True) != json.dumps(value, sort_keys=True):  # in Python 1 == True == 1.0
            patch[name] = value
    return patch | {name: None for name in old if name not in new}


def merged(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7396, as the server does it."""
    made = dict(old)
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        elif isinstance(value, dict):
            before = made.get(name)
            made[name] = merged(before if isinstance(before, dict) else {}, value)
        else:
            made[name] = value
    return made
