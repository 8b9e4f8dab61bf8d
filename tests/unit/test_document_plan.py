"""What is planned for a changed document: what is the same stays, what is held wins, and nothing else is left over."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from memory_layer.audit.states import merge_patch
from memory_layer.documents.passages import Passage
from memory_layer.documents.plan import Plan, Stored, difference, flags_for, loose_flags, merged, plan

_ids = itertools.count()


def node(text: str, slot: int | None, *, held: bool = False, line: int = 1, **more: Any) -> Stored:
    metadata = {"source": {"path": "a.md", "line": line}, **more.pop("metadata", {})}
    return Stored(f"n{next(_ids)}", 1, f"e{slot}", slot, held, text, metadata, None, more.pop("flags", {}))


TEXTS = st.lists(st.sampled_from("abcdef"), max_size=12)
NODES = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(1, 20), st.booleans()), max_size=12
).map(
    lambda made: [
        node(text, None if adopted else slot, held=held, line=line)
        for slot, (text, held, line, adopted) in enumerate(made)
    ]
)


@given(TEXTS, NODES)
def test_the_stored_passages_become_those_of_the_file(texts: list[str], known: list[Stored]) -> None:
    made = plan([Passage(text, line) for line, text in enumerate(texts, 1)], known)
    assert [one.passage.text for one in made.placed] == texts
    on = [one.on.id for one in made.placed if one.on]
    everything = on + [one.id for one in made.removed] + [one.id for one in made.held]
    assert Counter(everything) == Counter(one.id for one in known), "each node is used once"
    assert not any(one.held for one in made.removed)
    for one in made.placed:
        if one.on is not None:
            assert one.changed == (one.on.text != one.passage.text) or one.changed is False
            assert not (one.on.held and (one.changed or one.on.slot is None))
            assert one.changed or one.on.text == one.passage.text
    slots = [one.slot for one in made.placed] + [one.slot for one in made.held if one.slot is not None]
    assert len(set(slots)) == len(slots), "no two passages have one slot"
    keeps_first = [one for one in made.placed if one.on and one.on.held] + made.held
    if texts and not keeps_first:
        assert 0 in slots, "one of them tells of the whole"
    assert made.slots == max(slots, default=-1) + 1


@given(TEXTS, NODES)
def test_what_is_the_same_stays(texts: list[str], known: list[Stored]) -> None:
    made = plan([Passage(text, line) for line, text in enumerate(texts, 1)], known)
    usable = Counter(one.text for one in known if not (one.held and one.slot is None))
    kept = Counter(one.passage.text for one in made.placed if one.on and not one.changed)
    assert kept == usable & Counter(texts)


@given(TEXTS)
def test_an_unchanged_file_changes_nothing(texts: list[str]) -> None:
    known = [node(text, slot, line=slot + 1) for slot, text in enumerate(texts)]
    made = plan([Passage(text, line) for line, text in enumerate(texts, 1)], known)
    assert [(one.slot, one.on.id if one.on else None) for one in made.placed] == [(one.slot, one.id) for one in known]
    assert (made.removed, made.held) == ([], [])


def test_records_of_the_same_text_are_told_apart_by_their_fields() -> None:
    ann, bo = (node("Thanks!", slot, line=slot + 1, metadata={"who": who}) for slot, who in enumerate(("ann", "bo")))
    for one in (ann, bo):
        one.metadata["source"]["fields"] = ["who"]
    made = plan(
        [Passage("Thanks!", n, {"who": who}, fields=("who",)) for n, who in enumerate(("cy", "bo", "ann"))], [ann, bo]
    )
    assert [one.on.id if one.on else None for one in made.placed] == [None, bo.id, ann.id]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
METADATA = st.dictionaries(st.sampled_from(["heading", "frontMatter", "file", "x"]), JSON, max_size=4)


def without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_null(inner) for name, inner in value.items() if inner is not None}
    return value


@given(METADATA, METADATA)
def test_the_patch_leaves_what_is_wanted_and_what_is_not_ours(old: dict[str, Any], wanted: dict[str, Any]) -> None:
    stored = node("text", 0, metadata=old)
    wanted = {**wanted, "source": {"path": "b.md", "line": 2}}
    patch = difference(stored, wanted)
    after = merge_patch(stored.metadata, patch)
    theirs = {"x": old["x"]} if "x" in old and "x" not in wanted else {}
    assert without_null(after) == without_null({**wanted, **theirs})
    assert merged(stored.metadata, patch) == after
    stored.metadata = after
    assert without_null(difference(stored, wanted)) == {}


def test_flags_go_along_with_a_text_that_is_replaced() -> None:
    flagged = node("Ann, 555", 0, flags={"containsPii": True, "paths": ["content"], "classification": ["phone"]})
    open_one = node("nothing", 1, line=2)

    def planned(*texts: str) -> Plan:
        return plan([Passage(text, line) for line, text in enumerate(texts, 1)], [flagged, open_one])

    assert loose_flags(planned("Ann, 555", "new")) is None
    loose = loose_flags(planned("Ann", "nothing", "555"))
    assert loose == {"containsPii": True, "paths": ["content"], "classification": ["phone"]}
    assert flags_for(None, loose) == loose
    assert flags_for(flagged, loose) is None
    everything = node("x", 2, flags={"containsPii": True})
    assert flags_for(everything, loose) == {"containsPii": True, "classification": ["phone"]}
