"""Vectors of the whole text, and texts that the model cannot read: what is found by meaning, and what a caller is told."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx2
import pytest

from tests.api.door import connect, create_indexed, eventually, found_ids, patch_indexed, search
from tests.support.product import Product

# A text each that the local model knows nothing of, with two about other things in the same script.
UNREAD = {
    "Thai": ("แมวของฉันชื่อโม", "รหัสตู้เซฟคือสี่เจ็ดหนึ่งหนึ่ง", "ประชุมวันพุธตอนบ่าย"),
    "Lao": ("ແມວຂອງຂ້ອຍຊື່ໂມ", "ລະຫັດຕູ້ເຊຟແມ່ນສີ່ເຈັດ", "ປະຊຸມວັນພຸດ"),
    "Khmer": ("ឆ្មារបស់ខ្ញុំឈ្មោះម៉ូ", "លេខកូដទូដែកគឺបួនប្រាំពីរ", "ប្រជុំថ្ងៃពុធ"),
    "Burmese": ("ကျွန်တော့်ကြောင်နာမည်မို", "မီးခံသေတ္တာကုဒ်", "ဗုဒ္ဓဟူးနေ့အစည်းအဝေး"),
    "Amharic": ("ድመቴ ሞ ትባላለች", "የካዝናው ኮድ አራት ሰባት ነው", "ስብሰባው ረቡዕ ነው"),
    "emoji": ("🐱😻", "🔐4️⃣7️⃣", "📅🗓️"),
}
NEEDLE = "Ferdinand keeps the spare garage key under the blue flowerpot."
FILL = "The committee reviewed the quarterly figures and agreed to postpone the vote until all regional offices had replied. "
PASSWORD = "# the launch password is swordfish-77"
CODE = "for i, (name, value) in enumerate(sorted(items.items(), key=lambda kv: kv[1])):\n    total[name] += value * rates.get(name, 0.0)\n"


@pytest.fixture
def space() -> str:
    return f"n-{uuid.uuid4().hex[:8]}"


def job_of(http: httpx2.Client, node: str) -> dict[str, Any]:
    shown = http.get(f"/v1/memory/nodes/{node}").json()["vector"]["jobId"]
    job: dict[str, Any] = http.get(f"/v1/memory/vectors/jobs/{shown}").json()
    return job


@pytest.mark.parametrize("script", UNREAD)
def test_texts_that_the_model_cannot_read_are_told_apart_by_their_words(
    http: httpx2.Client, space: str, script: str
) -> None:
    texts = UNREAD[script]
    nodes = [create_indexed(http, content=text, namespace=space) for text in texts]
    for node in nodes:
        job = job_of(http, node)
        assert (job["status"], job["textRead"], job["error"]) == ("succeeded", "none", None)
    by_meaning = search(http, query=texts[0], namespace=space, mode="semantic")
    assert (by_meaning["results"], by_meaning["queryReadable"], by_meaning["degraded"]) == ([], False, False)
    both = search(http, query=texts[0], namespace=space, scoreThreshold=0.9)
    by_words = search(http, query=texts[0], namespace=space, mode="keyword")
    assert (both["queryReadable"], by_words["queryReadable"]) == (False, True)
    assert [hit["memoryNodeId"] for hit in both["results"]] == [hit["memoryNodeId"] for hit in by_words["results"]]
    if script != "emoji":
        assert found_ids(http, query=texts[0], namespace=space)[0] == nodes[0]


def test_beside_texts_that_it_reads_they_are_no_hit_by_meaning(http: httpx2.Client, space: str) -> None:
    unread = create_indexed(http, content="แมวของฉันชื่อโม", namespace=space)
    cat = create_indexed(http, content="my cat is called Mo", namespace=space)
    mixed = create_indexed(http, content="the vet saw Mo (โม) on Wednesday", namespace=space)
    found = search(http, query="what is the cat's name?", namespace=space, mode="semantic")
    assert found["queryReadable"]
    assert [hit["memoryNodeId"] for hit in found["results"]] == [cat, mixed]
    assert unread in found_ids(http, query="แมวของฉัน Mo", namespace=space, mode="keyword")


@pytest.mark.parametrize("blank", [" ", "\n\t", "\u2003\u00a0"])
def test_blank_text_is_read_by_nobody(http: httpx2.Client, space: str, blank: str) -> None:
    node = create_indexed(http, content=blank, namespace=space)
    create_indexed(http, content="words", namespace=space)
    assert job_of(http, node)["textRead"] == "none"
    assert search(http, query=blank, namespace=space, mode="semantic")["results"] == []


def test_a_text_that_becomes_unreadable_leaves_the_index_of_vectors_and_comes_back(
    product: Product, tenant: str, http: httpx2.Client, space: str
) -> None:
    node = create_indexed(http, content="the key is under the flowerpot", namespace=space)
    assert found_ids(http, query="flowerpot", namespace=space, mode="semantic") == [node]
    for content, read, found in (
        ("กุญแจอยู่ใต้กระถาง", "none", []),
        ("the key is in the shed", "whole", [node]),
        ("กุญแจอยู่ในโรงรถ", "none", []),
    ):
        patch_indexed(http, node, content=content)
        assert job_of(http, node)["textRead"] == read
        assert found_ids(http, query="where is the key?", namespace=space, mode="semantic") == found
        # What else is said of it changes nothing of that.
        patch_indexed(http, node, metadata={"seen": content})
        assert job_of(http, node)["textRead"] == read
        assert found_ids(http, query="where is the key?", namespace=space, mode="semantic") == found
    shown = product.ctl(
        "vectors", "status", "--tenant", tenant, "--namespace", space, "--data", str(product.data), "--json"
    )
    assert shown.returncode == 0, shown.stderr
    [status] = json.loads(shown.stdout)["spaces"]
    assert (status["state"], status["expected"], status["index"]) == ("equal", 0, 0)
    assert status["model"] == "all-MiniLM-L6-v2"
    assert (status["rows"]["succeeded"], status["unreadTexts"], status["partlyReadTexts"]) == (1, 1, 0)


def test_vectors_of_an_earlier_version_are_counted_until_the_worker_has_looked_at_them(
    product: Product, tenant: str, http: httpx2.Client, space: str
) -> None:
    node = create_indexed(http, content="the key is in the shed", namespace=space)

    def counted() -> int:
        with product.owner() as connection:
            connection.execute(
                "UPDATE memory_vectors SET metadata = metadata - 'read' WHERE memory_node_id = %s", [node]
            )
        shown = product.ctl("vectors", "status", "--tenant", tenant, "--data", str(product.data), "--json")
        return int(json.loads(shown.stdout)["earlierVectors"])

    eventually(counted, lambda now: now == 1, within=60)


@pytest.mark.parametrize(
    ("front", "end", "query"),
    [
        (f"{NEEDLE} {FILL * 20}", FILL * 20 + NEEDLE, "where is the spare garage key?"),
        (f"{NEEDLE} {FILL * 40}", FILL * 40 + NEEDLE, "where is the spare garage key?"),
        (f"{PASSWORD}\n{CODE * 7}", f"{CODE * 7}\n{PASSWORD}", "launch password swordfish"),
    ],
    ids=["2,200 characters of English", "4,700 characters of English", "950 characters of Python"],
)
def test_a_fact_at_the_end_is_found_as_one_at_the_front(
    http: httpx2.Client, space: str, front: str, end: str, query: str
) -> None:
    nodes = {create_indexed(http, content=text, namespace=space): text for text in (front, end)}
    assert {job_of(http, node)["textRead"] for node in nodes} == {"whole"}
    score = {
        nodes[hit["memoryNodeId"]]: hit["score"]
        for hit in search(http, query=query, namespace=space, mode="semantic")["results"]
    }
    assert score[end] >= 0.5 * score[front]


def test_long_texts_hold_nobody_up(product: Product, http: httpx2.Client, space: str) -> None:
    """Texts of as many windows as there may be are written; another tenant's note is found by meaning while they wait."""
    long = [{"owner": "ann", "namespace": space, "content": FILL * 600 + str(n)} for n in range(16)]
    made = http.post("/v1/memory/nodes:batch", json=long)
    assert made.status_code == 200, made.text
    with connect(product, f"t-{uuid.uuid4().hex[:12]}") as other:
        note = create_indexed(other, content="the gate code is 4711", namespace=space)
        assert found_ids(other, query="how do I open the gate?", namespace=space, mode="semantic") == [note]
    waiting = http.get("/healthz").json()["indexing"]["pending"]
    assert waiting > 0
    node = create_indexed(http, content="a short one of the same tenant", namespace=space)
    assert job_of(http, node)["textRead"] == "whole"
    for item in made.json()["items"]:
        assert http.delete(f"/v1/memory/nodes/{item['memoryNodeId']}").status_code == 204
