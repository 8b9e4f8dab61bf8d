"""Search by words through the door: at once after a write, in any language, by all of the query."""

from __future__ import annotations

import time

import httpx2
import pytest

from tests.api.door import create, eventually, found_ids, search

NODES = "/v1/memory/nodes"


def test_a_text_is_found_by_its_words_while_a_bulk_load_waits_for_vectors(http: httpx2.Client) -> None:
    keeper = create(http, content="the lighthouse keeper is called Bram")
    load = [
        {"owner": "bulk", "namespace": "bulk", "content": f"{n} " + "quarterly figures and a vote " * 30}
        for n in range(200)
    ]
    assert http.post(f"{NODES}:batch", json=load).status_code in (200, 202)
    assert http.patch(f"{NODES}/{keeper}", json={"content": "the lighthouse keeper is called Joost"}).status_code == 200
    code = create(http, content="the lighthouse code is 9931")
    started = time.monotonic()
    eventually(lambda: set(found_ids(http, query="lighthouse")), lambda ids: ids == {keeper, code})
    # On a slow machine that takes its time, but not until the vectors are there.
    assert time.monotonic() - started < 5 or search(http, query="lighthouse").get("pending")
    assert found_ids(http, query="Joost", mode="keyword") == [keeper]
    assert found_ids(http, query="Bram", mode="keyword") == []


@pytest.mark.parametrize(
    "before", ["please consider the following conversation and find anything relevant. " * 16, " ".join(f"word{n}" for n in range(70)) + " "]
)  # fmt: skip
def test_a_long_query_counts_whole(http: httpx2.Client, before: str) -> None:
    node = create(http, content="the aardvark sleeps")
    create(http, content="lorem ipsum dolor")
    eventually(lambda: found_ids(http, query="aardvark", mode="keyword"), lambda ids: ids == [node])
    answer = search(http, query=before + "aardvark", mode="keyword")
    assert [hit["memoryNodeId"] for hit in answer["results"]] == [node]
    assert answer["exact"]


@pytest.mark.parametrize(
    ("text", "asked"), [("fixed by 3f9c1a7e2b40", "3f9c1a7"), ("数据库密码每九十天更换一次", "数"), ("build 20231107T0815Z broke", "20231107t0")]
)  # fmt: skip
def test_the_beginning_of_a_word_counts_in_a_long_query_too(http: httpx2.Client, text: str, asked: str) -> None:
    node, other = create(http, content=text), create(http, content="lorem ipsum")
    before = " ".join(
        one + other for one in "bdfghklmn" for other in ("amp", "erk", "ild", "onk", "usk", "yst", "ort", "ant")
    )
    eventually(lambda: found_ids(http, query="ipsum", mode="keyword"), lambda ids: ids == [other])
    (short,) = search(http, query=f"bamp {asked}", mode="keyword")["results"]
    (long,) = search(http, query=f"{before} {asked}", mode="keyword")["results"]
    assert short["memoryNodeId"] == long["memoryNodeId"] == node
    assert long["scores"]["keyword"] == pytest.approx(short["scores"]["keyword"])


def test_a_query_that_is_cut_is_not_called_exact(http: httpx2.Client) -> None:
    create(http, content="the aardvark sleeps")
    answer = search(http, query=" ".join(f"w{n}x" for n in range(2_500)), mode="keyword")
    assert not answer["exact"]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("note about \u201cZanzibar\u201d today", "zanzibar"),
        ("我们公司的数据库密码每九十天更换一次，由运维团队负责。", "密码"),
        ("東京オフィスの会議室予約は総務部が管理しています。", "会議室"),
        ("서울 사무실의 출입 카드는 인사팀에서 발급합니다.", "카드"),
        ("พนักงานต้องส่งใบเบิกค่าเดินทางภายในสิ้นเดือน", "ค่าเดินทาง"),
        ("Die Datenbankreplikation läuft jede Nacht", "Replikation"),
        ("Die Verbindung zur Datenbank ist langsam", "Datenbankverbindung"),
        ("see ticket OPS-4521 for the outage", "4521"),
        ("it's a 'quoted' \\ path\\to", "path"),
    ],
)
def test_words_of_any_language_and_kind(http: httpx2.Client, text: str, query: str) -> None:
    node = create(http, content=text)
    create(http, content="something else altogether")
    eventually(lambda: found_ids(http, query=query, mode="keyword"), lambda ids: ids == [node])
