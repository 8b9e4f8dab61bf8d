"""The main job as a user does it: start, remember real text, find it, keep a file, hold a node, prove the log, come back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

from memory_layer.client import MemoryClient
from memory_layer.stores.embedders.local import LocalEmbedder
from tests.support.own_text import ROOT, TEMPLATE, Corpus, evidence_recall, find_corpus, own_text, top_of
from tests.support.product import Product, memory_entries, run_ctl, start_product

CONSISTENT_UNANCHORED = 10
BIG_FILE = 50 * 2**20
TOLERANCE = 0.005


@pytest.mark.slow
def test_the_main_job(data_folder: Path, tmp_path: Path) -> None:
    corpus = find_corpus(tmp_path)
    began = time.monotonic()
    product = start_product(data_folder)
    figures = [f"first start {time.monotonic() - began:.1f} s"]
    try:
        # Remember.
        words = ("ingest", str(corpus.path), "--content", TEMPLATE, "--wait")
        turns = ctl_json(product, *words)
        assert (turns["created"], turns["failed"], turns["artifacts"]) == (len(corpus.turns), 0, 1)
        figures.append(
            f"{corpus.name}: {turns['created'] / turns['seconds']:.0f} turns/s until all are found by meaning"
        )
        docs = ctl_json(product, "ingest", str(ROOT / "docs"), "--wait")
        assert docs["created"] > 0
        assert docs["failed"] == 0
        # A source that takes more than one request is opened by its first node and closed by a change of it; the one is the artifact of
        # the file that was named itself.
        with MemoryClient(product.url, product.token) as memory:
            closed = sum(1 for _ in memory.list({"version": 2}))
        assert 0 < closed < 20
        entries = len(corpus.turns) + docs["created"] + closed + 1
        assert verify(data_folder) == entries

        # Again: nothing is written.
        for again, first in (
            (ctl_json(product, *words), turns),
            (ctl_json(product, "ingest", str(ROOT / "docs")), docs),
        ):
            assert (again["created"], again["skipped"], again["artifacts"]) == (0, first["created"], 0)
        assert verify(data_folder) == entries

        # Find.
        began = time.monotonic()
        answers = ask(product, corpus)
        seconds = time.monotonic() - began
        recall = evidence_recall(corpus.questions, answers)
        exact = evidence_recall(corpus.questions, asyncio.run(exact_answers(corpus, stored_vectors(product, corpus))))
        figures.append(
            f"{len(corpus.questions)} questions: evidence recall@10 {recall:.4f}, NumPy exact search {exact:.4f}, "
            f"{len(corpus.questions) / seconds:.0f} searches/s with 2 clients"
        )
        assert abs(recall - exact) <= TOLERANCE
        if corpus.recall is not None:
            assert abs(recall - corpus.recall) <= TOLERANCE
            assert abs(exact - corpus.recall) <= TOLERANCE

        # Keep a file.
        sent = tmp_path / "big.bin"
        sent.write_bytes(random.Random(1).randbytes(BIG_FILE))
        digest = hashlib.sha256(sent.read_bytes()).hexdigest()
        began = time.monotonic()
        stored = ctl_json(product, "artifacts", "put", str(sent))
        figures.append(f"50 MB up in {time.monotonic() - began:.1f} s")
        assert (stored["sha256"], stored["sizeBytes"]) == (digest, BIG_FILE)
        began = time.monotonic()
        assert fetch(product, stored["artifactId"], tmp_path / "back.bin") == digest
        figures.append(f"50 MB down in {time.monotonic() - began:.1f} s")

        # Hold a node: it cannot be deleted.
        held = search(product, corpus, corpus.questions[0].conversation, corpus.questions[0].text)[0]["memoryNodeId"]
        done = product.ctl("node", "hold", held, "--reason", "litigation")
        assert done.returncode == 0, done.stderr
        with http(product) as client:
            refused = client.delete(f"/v1/memory/nodes/{held}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "LEGAL_HOLD")
        refused_ctl = product.ctl("node", "delete", held, "--yes")
        assert refused_ctl.returncode == 4
        assert "legal hold" in refused_ctl.stderr.lower()

        # Prove it: every entry, the artifact's and the hold's included.
        before = verify(data_folder)
        assert before == entries + 2
        first_hit = best(product, corpus)

        # Stop; the log can be verified without the product.
        assert product.stop() == 0
        assert verify(data_folder) == before

        # Come back.
        began = time.monotonic()
        product = start_product(data_folder)
        figures.append(f"next start {time.monotonic() - began:.1f} s")
        assert best(product, corpus) == first_hit
        assert fetch(product, stored["artifactId"], tmp_path / "again.bin") == digest
        with http(product) as client:
            assert client.get(f"/v1/memory/nodes/{held}").json()["legalHold"] is True
            assert client.delete(f"/v1/memory/nodes/{held}").status_code == 409
        began = time.monotonic()
        assert verify(data_folder) == before
        figures.append(f"verified {before} entries in {time.monotonic() - began:.1f} s")
    finally:
        code = product.stop()
        print("\n" + "\n".join(figures))
    assert code == 0


def test_own_text_stands_in(tmp_path: Path) -> None:
    """What the main job runs on without the shared data is enough to tell a good search from a bad one."""
    corpus = own_text(tmp_path)
    turns = {(turn.conversation, turn.id) for turn in corpus.turns}
    assert len(turns) == len(corpus.turns) > 200
    assert len(corpus.questions) > 100
    assert all((question.conversation, e) in turns for question in corpus.questions for e in question.evidence)
    nothing = [["none"]] * len(corpus.questions)
    everything = [list(question.evidence) for question in corpus.questions]
    assert evidence_recall(corpus.questions, nothing) == 0
    assert evidence_recall(corpus.questions, everything) == 1


def ctl_json(product: Product, *words: str) -> dict[str, Any]:
    done = product.ctl(*words, "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def http(product: Product) -> httpx2.Client:
    return httpx2.Client(base_url=product.url, headers={"Authorization": f"Bearer {product.token}"}, timeout=30)


def search(product: Product | httpx2.Client, corpus: Corpus, conversation: str, text: str) -> list[dict[str, Any]]:
    """The ten best turns of a conversation. Only turns: the documentation is remembered in the same namespace."""
    if isinstance(product, Product):
        with http(product) as client:
            return search(client, corpus, conversation, text)
    where = {"metadata.conversation": conversation, "metadata.source.path": name_of(corpus)}
    body = {"query": text, "mode": "semantic", "topK": 10, "filter": where}
    answer = product.post("/v1/memory/search", json=body)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def best(product: Product, corpus: Corpus) -> list[tuple[str, int, str]]:
    question = corpus.questions[0]
    hits = search(product, corpus, question.conversation, question.text)
    return [(hit["memoryNodeId"], hit["version"], hit["content"]) for hit in hits]


def ask(product: Product, corpus: Corpus) -> list[list[str]]:
    """For each question the turns found, best first. Two clients, as one leaves a core idle."""
    with http(product) as client, ThreadPoolExecutor(2) as threads:
        hits = threads.map(lambda q: search(client, corpus, q.conversation, q.text), corpus.questions)
        return [[hit["metadata"]["turn"] for hit in found] for found in hits]


def name_of(corpus: Corpus) -> str:
    """What its file is called in the record, as it is not below the current folder."""
    return "/".join(corpus.path.parts[-2:])


def stored_vectors(product: Product, corpus: Corpus) -> NDArray[np.float32]:
    """The vector that the product keeps of each turn, in the corpus's order."""
    with product.owner() as connection:
        found = connection.execute(
            "SELECT n.metadata ->> 'conversation', n.metadata ->> 'turn', v.vector_data ->> 'data' FROM memory_nodes n"
            " JOIN memory_vectors v ON v.tenant = n.tenant AND v.memory_node_id = n.id"
            " WHERE n.metadata -> 'source' ->> 'path' = %s",
            [name_of(corpus)],
        ).fetchall()
    vectors = {(place, turn): np.frombuffer(base64.b64decode(str(data)), "<f4") for place, turn, data in found}
    return np.stack([vectors[turn.conversation, turn.id] for turn in corpus.turns])


async def exact_answers(corpus: Corpus, turns: NDArray[np.float32]) -> list[list[str]]:
    """What an exact search over the turns' vectors finds.

    To embed all turns once more would take as long as the product takes; every thirtieth shows that these are the model's.
    """
    embedder = LocalEmbedder()
    try:
        some = (await embedder.embed([turn.content for turn in corpus.turns[::30]])).vectors
        assert np.allclose(some, turns[::30], atol=1e-5)
        questions = (await embedder.embed([question.text for question in corpus.questions], query=True)).vectors
    finally:
        await embedder.close()
    return top_of(corpus, turns, questions)


def fetch(product: Product, artifact: str, path: Path) -> str:
    """Download; the SHA-256 of what arrived."""
    done: subprocess.CompletedProcess[str] = product.ctl("artifacts", "get", artifact, "--output", str(path))
    assert done.returncode == 0, done.stderr
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(data: Path) -> int:
    """How many entries tell of nodes and artifacts, in a log in which nothing is wrong."""
    done = run_ctl("audit", "verify", "--data", str(data), "--json")
    assert done.returncode == CONSISTENT_UNANCHORED, done.stdout + done.stderr
    report = json.loads(done.stdout)
    counts: dict[str, Any] = report["counts"]
    assert (report["verdict"], report["findings"]) == ("CONSISTENT_UNANCHORED", [])
    assert (counts["first"], counts["last"]) == (0, counts["entries"] - 1)
    assert counts["payloads_matched"] == counts["entries"]
    assert counts["seals_valid"] == counts["batches"] > 0
    return memory_entries(data)
