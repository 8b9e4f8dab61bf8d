"""What stands beside a hit in its thread counts, and is answered with it, where the caller might have found it; nothing else does."""

from __future__ import annotations

import uuid
from typing import Any

import httpx2
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.door import NO_PII, check_error, connect, create_indexed, patch_indexed, search
from tests.support.product import Product, running_product

NODES = "/v1/memory/nodes"
ASKED = "when does the ferry to Orkney leave"
FERRY = "The ferry to Orkney, when it leaves from the pier."
ANSWER = "At seven sharp, and never on Sundays."
HIDDEN = {"containsPii": True, "paths": ["content"]}


def write(http: httpx2.Client, *texts: str, thread: str, **columns: Any) -> list[str]:
    return [create_indexed(http, content=text, thread=thread, position=n, **columns) for n, text in enumerate(texts)]


def hits_of(http: httpx2.Client, **body: Any) -> dict[str, dict[str, Any]]:
    return {hit["memoryNodeId"]: hit for hit in search(http, **({"query": ASKED, "topK": 50} | body))["results"]}


def added(hit: dict[str, Any]) -> float:
    return float(hit["scores"].get("neighbours", 0) + hit["scores"].get("thread", 0))


def test_the_answer_beside_the_question_is_found_before_what_stands_alone(http: httpx2.Client) -> None:
    alone = create_indexed(http, content=ANSWER)
    question, answer, far = write(http, FERRY, ANSWER, "Fine.", thread="a talk")
    hits = hits_of(http)
    assert list(hits)[:2] == [question, answer]
    assert hits[answer]["score"] > hits[alone]["score"]
    assert hits[answer]["scores"]["neighbours"] > hits[far]["scores"]["neighbours"] > 0
    assert hits[answer]["scores"]["thread"] == hits[far]["scores"]["thread"] > 0
    assert added(hits[alone]) == 0
    for mode in ("semantic", "keyword"):
        assert all(added(hit) == 0 for hit in hits_of(http, mode=mode).values())


def test_another_thread_namespace_or_tenant_gives_nothing(product: Product, http: httpx2.Client) -> None:
    alone = create_indexed(http, content=ANSWER, thread="a talk", position=1)
    before = hits_of(http)[alone]
    for columns in ({"thread": "another"}, {"thread": "a talk", "namespace": "elsewhere"}):
        create_indexed(http, content=FERRY, position=0, **columns)
        assert added(hits_of(http, filter={"memoryNodeId": alone})[alone]) == added(before)
    with connect(product, f"t-{uuid.uuid4().hex[:12]}") as other:
        create_indexed(other, content=FERRY, thread="a talk", position=0)
    assert hits_of(http, filter={"memoryNodeId": alone})[alone]["scores"].get("neighbours") is None


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_what_the_caller_could_not_find_gives_and_tells_nothing(product: Product, data: st.DataObject) -> None:
    """A hidden text, or one that the filter leaves out, may say what it likes: every answer stays what it was."""
    tenant = f"t-{uuid.uuid4().hex[:12]}"
    secret, where = data.draw(st.integers(0, 4)), data.draw(st.sampled_from(["flags", "filter"]))
    texts = data.draw(st.lists(st.sampled_from([ANSWER, FERRY, "Fine.", "Orkney"]), min_size=5, max_size=5))
    asked: dict[str, Any] = {"context": {"before": 3, "after": 3}}
    with connect(product, tenant) as all_, connect(product, tenant, NO_PII, "reader") as some:
        made = []
        for n, text in enumerate(texts):
            more: dict[str, Any] = {"metadata": {"kind": "secret" if n == secret else "open"}}
            if n == secret and where == "flags":
                more["piiFlags"] = HIDDEN
            made.append(create_indexed(all_, content=text, thread="a talk", position=n, **more))
        reader = some if where == "flags" else all_
        if where == "filter":
            asked["filter"] = {"metadata.kind": "open"}
        answers = []
        for text in (texts[secret], "Nothing at all.", f"{ASKED} {FERRY}"):
            patch_indexed(all_, made[secret], content=text)
            answers.append(hits_of(reader, **asked))
            assert made[secret] not in str(answers[-1])
        if where == "flags":
            assert answers[1] == answers[2] == answers[0]
        else:  # how rare a word is counts over the whole namespace (decision 0009); the neighbours' part may not grow
            for answer in answers:
                for hit in answer.values():
                    assert hit["scores"].get("neighbours", 0) <= max(0.6 * h["score"] for h in answer.values())


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_threshold_removes_hits_and_moves_none_in_threads_too(product: Product, data: st.DataObject) -> None:
    with connect(product, f"t-{uuid.uuid4().hex[:12]}") as http:
        texts = data.draw(
            st.lists(st.sampled_from([ANSWER, FERRY, "Fine.", "A boat to the isles"]), min_size=2, max_size=6)
        )
        for n, text in enumerate(texts):
            create_indexed(http, content=text, thread=f"talk {n % 2}", position=n)
        before = list(hits_of(http).items())
        for threshold in (-1.0, 0.1, 0.3, 0.5, 0.7, 1.0):
            after = list(hits_of(http, scoreThreshold=threshold).items())
            assert [hit for hit in before if hit in after] == after
            before = after


def test_neighbours_come_along_in_the_order_of_the_thread(http: httpx2.Client) -> None:
    made = write(http, "One.", "Two.", FERRY, "Four.", "Five.", thread="a talk")
    (hit,) = search(http, query=ASKED, topK=1, context={"before": 2, "after": 1})["results"]
    assert (hit["memoryNodeId"], hit["thread"], hit["position"]) == (made[2], "a talk", 2)
    assert [one["content"] for one in hit["context"]["before"]] == ["One.", "Two."]
    assert [(one["memoryNodeId"], one["content"], one["position"]) for one in hit["context"]["after"]] == [
        (made[3], "Four.", 3)]  # fmt: skip
    for mode in ("semantic", "keyword"):
        (same,) = search(http, query=ASKED, topK=1, mode=mode, context={"before": 10})["results"]
        assert [one["content"] for one in same["context"]["before"]] == ["One.", "Two."]
        assert same["context"]["after"] == []
    assert "context" not in search(http, query=ASKED, topK=1)["results"][0]
    assert "context" not in search(http, query=ASKED, topK=1, context={})["results"][0]


def test_without_positions_the_time_is_the_order(http: httpx2.Client) -> None:
    def at(text: str, day: int) -> str:
        return create_indexed(http, content=text, thread="a diary", occurredAt=f"2026-03-{day:02}T08:00:00Z")

    late, first, middle = at("Late.", 9), at("First.", 1), at(FERRY, 5)
    placed = create_indexed(http, content="Placed.", thread="a diary", position=2**53 - 1)
    (hit,) = search(http, query=ASKED, topK=1, context={"before": 5, "after": 5})["results"]
    assert hit["memoryNodeId"] == middle
    assert [one["memoryNodeId"] for one in hit["context"]["before"]] == [placed, first]
    assert [one["memoryNodeId"] for one in hit["context"]["after"]] == [late]


def test_long_neighbours_come_whole_and_the_answer_stays_bounded(http: httpx2.Client) -> None:
    long = "x" * 1_500_000
    made = write(http, long, FERRY, thread="a book")
    (hit,) = search(http, query=ASKED, topK=1, mode="keyword", context={"before": 1})["results"]
    assert hit["memoryNodeId"] == made[1]
    assert hit["context"]["before"][0]["content"] == long
    for n in range(2, 14):
        create_indexed(http, content=long if n < 13 else f"{FERRY} {FERRY}", thread="a book", position=n)
    refused = http.post("/v1/memory/search", json={"query": ASKED, "topK": 1, "context": {"before": 10, "after": 1}})
    refused = refused if refused.status_code == 413 else http.post(
        "/v1/memory/search", json={"query": ASKED, "topK": 2, "context": {"before": 10, "after": 10}})  # fmt: skip
    check_error(refused, 413, "PAYLOAD_TOO_LARGE")


def test_deleted_expired_and_hidden_neighbours_do_not_come_along(
    product: Product, tenant: str, http: httpx2.Client
) -> None:
    hidden, gone, flagged = (
        create_indexed(http, content="Hidden.", thread="a talk", position=0, piiFlags=HIDDEN),
        create_indexed(http, content="Gone.", thread="a talk", position=1),
        create_indexed(http, content="Shown.", metadata={"email": "z@example.org", "n": 1}, thread="a talk", position=2,
                       piiFlags={"containsPii": True, "paths": ["metadata.email"]}),
    )  # fmt: skip
    create_indexed(http, content=FERRY, thread="a talk", position=3)
    assert http.delete(f"{NODES}/{gone}").status_code == 204
    with connect(product, tenant, NO_PII, "reader") as some:
        (hit,) = search(some, query=ASKED, topK=1, context={"before": 5})["results"]
        assert [(one["memoryNodeId"], one["metadata"]) for one in hit["context"]["before"]] == [
            (flagged, {"email": "[redacted]", "n": 1})]  # fmt: skip
    (hit,) = search(http, query=ASKED, topK=1, context={"before": 5})["results"]
    assert [one["memoryNodeId"] for one in hit["context"]["before"]] == [hidden, flagged]


@pytest.mark.parametrize(
    "context",
    [7, [], "x", {"before": -1}, {"after": 11}, {"before": 1.5}, {"before": "1"}, {"before": True}, {"around": 1}, {"before": None}],
)  # fmt: skip
def test_what_is_no_context_is_refused(http: httpx2.Client, context: object) -> None:
    check_error(http.post("/v1/memory/search", json={"query": "x", "context": context}), 422, "VALIDATION_ERROR")


def test_it_says_why(http: httpx2.Client) -> None:
    question, answer = write(http, FERRY, ANSWER, thread="a talk")
    alone = create_indexed(http, content="Orkney", metadata={"kind": "left"})
    told = search(http, query=ASKED, explain=True, filter={"memoryNodeId": [question, answer]})
    first, second = told["results"]
    why, beside = first["explain"], second["explain"]
    assert (first["memoryNodeId"], second["memoryNodeId"]) == (question, answer)
    assert {one["word"] for one in why["words"]} == {"ferri", "orkney", "leav"}
    assert sum(one["weight"] for one in told["explain"]["words"]) == pytest.approx(1)
    assert why["cosine"] == first["scores"]["semantic"]
    assert beside["words"] == []
    assert beside["neighbour"] == {"memoryNodeId": question, "distance": 1, "gave": second["scores"]["neighbours"]}
    assert set(beside["threadBest"]) == {question, answer}
    assert told["explain"]["index"] == {"way": "entries", "exact": True}
    assert {"memoryNodeId": alone, "reason": "filter"} in told["explain"]["leftOut"]
    plain = search(http, query=ASKED, filter={"memoryNodeId": [question, answer]})
    assert "explain" not in plain
    assert [{n: v for n, v in hit.items() if n != "explain"} for hit in told["results"]] == plain["results"]


@pytest.mark.parametrize("mode", ["semantic", "keyword"])
def test_it_says_why_in_each_mode(http: httpx2.Client, mode: str) -> None:
    create_indexed(http, content=FERRY)
    told = search(http, query=ASKED, explain=True, mode=mode)
    (hit,) = told["results"]
    assert (hit["explain"]["cosine"] is None) == (mode == "keyword")
    assert bool(hit["explain"]["words"]) == (mode == "keyword")
    assert told["explain"]["index"]["exact"] is (None if mode == "keyword" else True)


def test_it_says_nothing_of_hidden_texts(product: Product, tenant: str, http: httpx2.Client) -> None:
    secret = create_indexed(http, content=f"{FERRY} xylophone", piiFlags=HIDDEN)
    create_indexed(http, content="A boat to the isles.")
    with connect(product, tenant, NO_PII, "reader") as some:
        told = search(some, query=f"{ASKED} xylophone", explain=True)
        assert secret not in str(told)
        assert told["explain"]["words"] == told["explain"]["leftOut"] == []
    assert "xylophon" in str(search(http, query=f"{ASKED} xylophone", explain=True)["explain"]["words"])


@pytest.mark.parametrize("value", [1, "true", None, {}])
def test_explain_is_yes_or_no(http: httpx2.Client, value: object) -> None:
    check_error(http.post("/v1/memory/search", json={"query": "x", "explain": value}), 422, "VALIDATION_ERROR")


def test_the_command_line_shows_both(product: Product) -> None:
    def made(text: str, position: int) -> str:
        done = product.ctl("node", "create", text, "--thread", "cli talk", "--position", str(position), "--wait")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    question, answer = made("The zeppelin to Orkney leaves from the quay.", 0), made(ANSWER, 1)
    words = ("search", "zeppelin quay", "--mode", "hybrid", "--top-k", "1")
    shown = product.ctl(*words, "--after", "1")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split("\t") for line in shown.stdout.splitlines()]
    assert [row[1] for row in rows] == ["id", question, answer]
    assert (rows[0], rows[2][0]) == (["score", "id", "text", "source"], "")
    why = product.ctl(*words, "--explain").stdout.splitlines()[1].split("\t")[4]
    assert "words " in why
    assert "zeppelin" in why
    assert product.ctl(*words, "--before", "11").returncode == 2


@pytest.fixture(scope="module")
def tampered() -> Any:
    with running_product() as running:
        yield running


@pytest.mark.parametrize(
    "edit", ["content = 'The ferry to Orkney leaves at noon'", "thread = 'another'", "position = 0"]
)
def test_a_tampered_neighbour_gives_nothing_and_does_not_come_along(tampered: Product, tenant: str, edit: str) -> None:
    with connect(tampered, tenant) as http:
        bad, good = write(http, FERRY, ANSWER, thread="a talk")
        other = create_indexed(http, content="Fine.", thread="another", position=1)
        with psycopg.connect(tampered.database, autocommit=True) as app:
            app.execute("SELECT set_config('memory.all_tenants', 'on', false)")
            app.execute(
                f"UPDATE memory_nodes SET {edit if edit != 'position = 0' else 'position = 9'} WHERE id = %s", [bad]
            )
        answer = search(http, query=ASKED, topK=10, context={"before": 3, "after": 3})
        assert bad not in str(answer)
        assert answer["dropped"] == {"tampered": 1}
        hits = {hit["memoryNodeId"]: hit for hit in answer["results"]}
        assert hits.keys() == {good, other}
        assert all("neighbours" not in hit["scores"] for hit in hits.values())
