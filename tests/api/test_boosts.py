"""The time of a node counts where the question names it, and how recent it is where that is asked for."""

from __future__ import annotations

import datetime as dt
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_layer.service.fusion import DATE
from tests.api.door import NO_PII, check_error, connect, create_indexed, patch_indexed, search
from tests.support.product import Product

TEXT = "We walked to the lighthouse and back."
ASKED = "our walk to the lighthouse"
NAMED = f"{ASKED} in May 2023"


def dated(http: httpx2.Client, *days: str, **columns: Any) -> list[str]:
    return [create_indexed(http, content=TEXT, occurredAt=f"{day}T09:00:00Z", **columns) for day in days]


def hits_of(http: httpx2.Client, query: str, **body: Any) -> dict[str, dict[str, Any]]:
    return {hit["memoryNodeId"]: hit for hit in search(http, query=query, **({"topK": 50} | body))["results"]}


def needs_dates() -> None:
    pytest.importorskip("dateparser", reason="it belongs to the server's libraries: make install")


@pytest.mark.parametrize("mode", ["hybrid", "keyword"])
def test_what_is_of_the_time_that_is_named_comes_first(http: httpx2.Client, mode: str) -> None:
    needs_dates()
    before, within, after = dated(http, "2023-04-30", "2023-05-31", "2023-06-01")
    timeless = create_indexed(http, content=TEXT)
    hits = hits_of(http, NAMED, mode=mode)
    assert list(hits) == [within, *sorted((before, after, timeless))]
    assert hits[within]["scores"]["date"] == DATE
    assert hits[within]["score"] == pytest.approx(hits[before]["score"] + DATE)
    assert all("date" not in hits[node]["scores"] for node in (before, after, timeless))
    assert all("date" not in hit["scores"] for hit in hits_of(http, ASKED, mode=mode).values())


def test_by_meaning_alone_no_time_counts(http: httpx2.Client) -> None:
    dated(http, "2023-05-07")
    assert all("date" not in hit["scores"] for hit in hits_of(http, NAMED, mode="semantic").values())


def test_it_is_mild(http: httpx2.Client) -> None:
    """A text that is about something else does not pass one that answers."""
    needs_dates()
    (right,) = dated(http, "2021-01-01")
    other = create_indexed(http, content="The bank raised its rates again.", occurredAt="2023-05-05T00:00:00Z")
    assert list(hits_of(http, NAMED)) == [right, other]


def test_it_says_why(http: httpx2.Client) -> None:
    needs_dates()
    within, without = dated(http, "2023-05-07", "2022-05-07")
    told = search(http, query=NAMED, explain=True, recency={})
    assert told["explain"]["dates"] == [
        {"text": "May 2023", "start": "2023-05-01T00:00:00.000000Z", "end": "2023-06-01T00:00:00.000000Z"}
    ]
    why = {hit["memoryNodeId"]: hit["explain"] for hit in told["results"]}
    assert (why[within]["date"], why[without]["date"]) == ("May 2023", None)
    assert why[without]["ageDays"] - why[within]["ageDays"] == pytest.approx(365)
    plain = search(http, query=ASKED, explain=True)
    assert plain["explain"]["dates"] == []
    assert all(hit["explain"]["ageDays"] is None for hit in plain["results"])


@pytest.mark.parametrize("mode", ["hybrid", "keyword", "semantic"])
def test_recent_nodes_come_first_where_it_is_asked_for(http: httpx2.Client, mode: str) -> None:
    old, late, ahead = dated(http, "2001-01-01", "2024-01-01", "2090-01-01")
    fresh = create_indexed(http, content=TEXT)  # of its creation
    asked = {"mode": mode, "recency": {"halfLifeDays": 1000, "weight": 0.2}}
    hits = hits_of(http, ASKED, **asked)
    assert list(hits) == [ahead, fresh, late, old]
    gains = [hits[node]["scores"]["recency"] for node in (ahead, fresh, late, old)]
    assert gains[0] == 0.2
    assert gains[1] == pytest.approx(0.2, abs=1e-3)
    assert gains[2] < 0.2
    age = (dt.datetime.now(dt.UTC) - dt.datetime(2024, 1, 1, 9, tzinfo=dt.UTC)).total_seconds() / 86_400
    assert gains[2] == pytest.approx(0.2 * 0.5 ** (age / 1000), rel=0.01)
    assert list(hits_of(http, ASKED, mode=mode)) == sorted(hits)  # off, where it is not asked for: equal scores, by id
    assert all("recency" not in hit["scores"] for hit in hits_of(http, ASKED, mode=mode).values())


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_threshold_removes_hits_and_moves_none_with_both(product: Product, tenant: str, data: st.DataObject) -> None:
    space = f"n{data.draw(st.integers(0, 10**9))}"
    texts = st.sampled_from([TEXT, "A walk.", "The lighthouse keeper counted the ships.", "Rates rose."])
    days = st.sampled_from(["2023-05-07", "2023-07-01", "2020-01-01"])
    with connect(product, tenant) as http:
        for text, day in data.draw(st.lists(st.tuples(texts, days), min_size=2, max_size=6)):
            create_indexed(http, content=text, occurredAt=f"{day}T00:00:00Z", namespace=space, thread="a talk")
        for mode in ("hybrid", "semantic"):
            asked: dict[str, Any] = {
                "mode": mode,
                "namespace": space,
                "recency": {"halfLifeDays": 100_00, "weight": 0.3},
            }
            order = list(hits_of(http, NAMED, **asked))
            for threshold in (-1.0, 0.1, 0.3, 0.5, 0.7, 1.0):
                after = list(hits_of(http, NAMED, scoreThreshold=threshold, **asked))
                assert [node for node in order if node in after] == after
                order = after


def test_a_filter_and_hidden_text_stay_what_they_were(product: Product, tenant: str, http: httpx2.Client) -> None:
    secret, shown = dated(http, "2023-05-07", "2022-01-01")
    hidden = {"containsPii": True, "paths": ["content"]}
    patch_indexed(http, secret, piiFlags=hidden)
    with connect(product, tenant, NO_PII, "reader") as some:
        told = search(some, query=NAMED, explain=True, recency={})
        assert [hit["memoryNodeId"] for hit in told["results"]] == [shown]
        assert secret not in str(told)
    assert list(hits_of(http, NAMED, filter={"memoryNodeId": shown})) == [shown]


@pytest.mark.parametrize(
    "recency",
    [7, [], "P30D", {"halfLifeDays": 0}, {"halfLifeDays": -1}, {"halfLifeDays": 36501}, {"halfLifeDays": "30"}, {"weight": 1.1},
     {"weight": -0.1}, {"weight": True}, {"halfLifeDays": None}, {"days": 3}],
)  # fmt: skip
def test_what_is_no_recency_is_refused(http: httpx2.Client, recency: object) -> None:
    check_error(http.post("/v1/memory/search", json={"query": "x", "recency": recency}), 422, "VALIDATION_ERROR")


def test_the_command_line_asks_for_it(product: Product) -> None:
    for day in ("2001-01-01", "2025-01-01"):
        done = product.ctl(
            "node", "create", f"The dirigible of {day[:4]}.", "--occurred-at", f"{day}T00:00:00Z", "--wait"
        )
        assert done.returncode == 0, done.stderr
    words = ("search", "dirigible", "--mode", "keyword")
    shown = product.ctl(*words, "--recency", "3000", "--explain")
    assert shown.returncode == 0, shown.stderr
    rows = shown.stdout.splitlines()[1:]
    assert "2025" in rows[0]
    assert "recency +" in rows[0]
    assert product.ctl(*words, "--recency", "0").returncode == 2
