"""What readers without read:pii see of flagged nodes: neither the values nor a way to guess them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.api.door import NO_PII, check_error, connect, create_indexed, found_ids, listed_ids, search
from tests.support.product import Product

NODES = "/v1/memory/nodes"
ARTIFACTS = "/v1/memory/artifacts"
HIDDEN = "[redacted]"


class Readers:
    """Two readers of one tenant, and its nodes."""

    def __init__(self, all_: httpx2.Client, some: httpx2.Client) -> None:
        self.all, self.some = all_, some
        self.whole = create_indexed(
            all_,
            content="the password is plutonium",
            metadata={"email": "zoe@example.org", "n": 7},
            piiFlags={"containsPii": True},
        )
        self.part = create_indexed(
            all_,
            content="meeting about plutonium",
            metadata={
                "email": "zoe@example.org",
                "n": 7,
                "people": [{"name": "Zoë", "role": "chair"}, {"name": "Ann"}],
                "contact": {"phone": "123", "room": "4"},
            },
            piiFlags={
                "containsPii": True,
                "paths": ["metadata.email", "metadata.people.name", "metadata.contact.phone", "metadata.absent.x"],
            },
        )
        self.open = create_indexed(
            all_, content="nothing secret", metadata={"n": 7}, piiFlags={"containsPii": False, "paths": ["content"]}
        )

    def node(self, http: httpx2.Client, node: str) -> dict[str, Any]:
        """The node as get, list and search show it, which must agree."""
        got: dict[str, Any] = http.get(f"{NODES}/{node}").json()
        (listed,) = (n for n in http.get(NODES).json()["items"] if n["memoryNodeId"] == node)
        assert listed == got
        hits = [h for h in search(http, query="x", mode="semantic")["results"] if h["memoryNodeId"] == node]
        # Likeness to hidden text would be as good a guess at it as a matching word.
        assert len(hits) == (got["content"] != HIDDEN)
        assert all((hit["content"], hit["metadata"]) == (got["content"], got["metadata"]) for hit in hits)
        return got


@pytest.fixture(scope="module")
def readers(product: Product) -> Iterator[Readers]:
    tenant = f"t-{uuid.uuid4().hex[:12]}"
    with connect(product, tenant) as everything, connect(product, tenant, NO_PII, "some") as some:
        yield Readers(everything, some)


def test_with_the_scope_everything_is_seen(readers: Readers) -> None:
    assert readers.node(readers.all, readers.whole)["metadata"] == {"email": "zoe@example.org", "n": 7}
    assert readers.node(readers.all, readers.part)["metadata"]["people"][0]["name"] == "Zoë"


def test_without_it_the_flagged_is_redacted(readers: Readers) -> None:
    whole = readers.node(readers.some, readers.whole)
    assert (whole["content"], whole["metadata"]) == (HIDDEN, HIDDEN)
    assert whole["piiFlags"] == {"containsPii": True}
    part = readers.node(readers.some, readers.part)
    assert part["content"] == "meeting about plutonium"
    assert part["metadata"] == {
        "email": HIDDEN,
        "n": 7,
        "people": [{"name": HIDDEN, "role": "chair"}, {"name": HIDDEN}],
        "contact": {"phone": HIDDEN, "room": "4"},
    }
    assert readers.node(readers.some, readers.open)["content"] == "nothing secret"


FILTERS: list[tuple[dict[str, Any], bool]] = [
    # What stands in hidden places counts as missing: right and wrong guesses answer alike.
    ({"metadata.email": "zoe@example.org"}, False),
    ({"metadata.email": "wrong@example.org"}, False),
    ({"metadata.email": {"$ne": "zoe@example.org"}}, True),
    ({"metadata.email": {"$ne": "wrong@example.org"}}, True),
    ({"metadata.email": {"$nin": ["zoe@example.org"]}}, True),
    ({"metadata.email": {"$exists": True}}, False),
    ({"metadata.email": {"$exists": False}}, True),
    ({"metadata.email": None}, True),
    ({"$not": {"metadata.email": "zoe@example.org"}}, True),
    ({"$not": {"metadata.email": {"$exists": True}}}, True),
    ({"$or": [{"metadata.email": "zoe@example.org"}, {"owner": "nobody"}]}, False),
    ({"metadata.people.name": "Zoë"}, False),
    ({"metadata.people.name": {"$exists": True}}, False),
    ({"metadata.contact.phone": {"$in": ["123", "456"]}}, False),
    ({"metadata.email": {"$all": ["zoe@example.org"]}}, False),
    ({"metadata.email": {"$startsWith": "zoe"}}, False),
    ({"metadata.email": {"$not": {"$startsWith": "zoe"}}}, True),
    ({"metadata.email": {"$contains": "zoe@example.org"}}, False),
    ({"metadata.email": {"$not": {"$gte": "2026-01-01"}}}, True),
    ({"/metadata/email": "zoe@example.org"}, False),
    ({"/metadata/email": {"$exists": True}}, False),
    ({"/metadata/contact/phone": {"$startsWith": "1"}}, False),
]


@pytest.mark.parametrize(("where", "matches"), FILTERS, ids=json.dumps)
def test_filters_are_no_oracle(readers: Readers, where: dict[str, Any], matches: bool) -> None:
    hidden = {readers.whole, readers.part}
    listed = listed_ids(readers.some, filter=json.dumps(where))
    assert hidden & set(listed) == (hidden if matches else set()), where
    found = found_ids(readers.some, query="x", mode="semantic", filter=where)
    assert hidden & set(found) == ({readers.part} if matches else set()), where
    answer = search(readers.some, query="plutonium", filter=where)
    assert answer["dropped"] == {}


def test_content_and_open_fields_of_flagged_nodes(readers: Readers) -> None:
    assert readers.whole not in listed_ids(readers.some, filter='{"content":"the password is plutonium"}')
    assert readers.whole in listed_ids(readers.some, filter='{"content":{"$exists":false}}')
    assert readers.whole in listed_ids(readers.all, filter='{"content":"the password is plutonium"}')
    # metadata.n is hidden in the one, and open in the other two.
    assert set(listed_ids(readers.some, filter='{"metadata.n":7}')) == {readers.part, readers.open}
    assert len(listed_ids(readers.all, filter='{"metadata.n":{"$gt":6}}')) == 3
    assert set(listed_ids(readers.some, filter='{"piiFlags.containsPii":true}')) == {readers.whole, readers.part}


def test_keywords_are_no_oracle(readers: Readers) -> None:
    right = search(readers.some, query="password", mode="keyword")
    wrong = search(readers.some, query="passport", mode="keyword")
    assert right == wrong
    assert right["results"] == []
    assert found_ids(readers.some, query="plutonium", mode="keyword") == [readers.part]
    assert set(found_ids(readers.all, query="plutonium", mode="keyword")) == {readers.whole, readers.part}
    assert readers.whole not in found_ids(readers.some, query="password plutonium")


def test_meaning_is_no_oracle(readers: Readers) -> None:
    exact = search(readers.some, query="the password is plutonium", mode="semantic")
    assert readers.whole not in [hit["memoryNodeId"] for hit in exact["results"]]
    assert exact["dropped"] == {}
    assert found_ids(readers.all, query="the password is plutonium", mode="semantic")[0] == readers.whole


def test_whom_flags_hide_something_from_cannot_lift_them(readers: Readers) -> None:
    check_error(
        readers.some.patch(f"{NODES}/{readers.whole}", json={"piiFlags": {"containsPii": False}}), 403, "FORBIDDEN"
    )
    assert readers.some.patch(f"{NODES}/{readers.open}", json={"metadata": {"m": 1}}).status_code == 200


def test_a_key_that_no_path_can_name_hides_all_metadata(readers: Readers) -> None:
    flags = {"containsPii": True, "paths": ["metadata.a.b"]}
    node = create_indexed(readers.all, content="x", metadata={"a.b": "secret"}, piiFlags=flags)
    assert readers.some.get(f"{NODES}/{node}").json()["metadata"] == HIDDEN
    readers.all.delete(f"{NODES}/{node}")


def test_files_of_a_hidden_node_are_hidden(readers: Readers) -> None:
    put = readers.all.put(ARTIFACTS, params={"memoryNodeId": readers.whole, "name": "Zoe Smith.txt"}, content=b"x")
    artifact = f"{ARTIFACTS}/{put.json()['artifactId']}"
    assert readers.some.get(artifact).json()["name"] == HIDDEN
    check_error(readers.some.get(f"{artifact}/content"), 403, "FORBIDDEN")
    assert "Zoe" not in readers.some.get(f"{NODES}/{readers.whole}").text
    assert readers.all.get(f"{artifact}/content").content == b"x"


def test_flags_that_come_later_hide_at_once(readers: Readers) -> None:
    node = create_indexed(readers.all, content="albatross", metadata={"kind": "bird"})
    assert found_ids(readers.some, query="albatross", mode="keyword") == [node]
    readers.all.patch(f"{NODES}/{node}", json={"piiFlags": {"containsPii": True, "paths": ["content"]}})
    assert found_ids(readers.some, query="albatross", mode="keyword") == []
    shown = readers.some.get(f"{NODES}/{node}").json()
    assert (shown["content"], shown["metadata"]) == (HIDDEN, {"kind": "bird"})
    readers.all.delete(f"{NODES}/{node}")


def test_the_history_tells_no_values(readers: Readers) -> None:
    text = readers.some.get(f"{NODES}/{readers.whole}/history").text
    assert "plutonium" not in text
    assert "zoe@" not in text
