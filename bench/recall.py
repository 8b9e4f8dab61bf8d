"""Remembering real conversations and finding in them: `memoryctl ingest`, then searches over HTTP from one client."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from bench.report import Table, spread
from bench.running import running
from memory_layer.stores.embedders.local import LocalEmbedder
from tests.support.own_text import (
    TEMPLATE,
    THREAD,
    Corpus,
    Question,
    evidence_recall,
    find_corpus,
    hit_share,
    own_text,
)
from tests.support.product import Product

WARM_UP = 20


def measure() -> Table:
    with tempfile.TemporaryDirectory(prefix="memory-layer-bench-") as place, running() as product:
        corpus = find_corpus(Path(place))
        posted, indexed = _ingest(product, corpus)
        vectors = asyncio.run(_embed(corpus))
        texts = [_body(question) for question in corpus.questions]
        # Each mode asks in a row, so that no mode warms a cache for another's first searches.
        by_text, found = _ask(product, [body | {"mode": "semantic"} for body in texts])
        by_vector, found_by_vector = _ask(
            product,
            [
                {name: value for name, value in body.items() if name != "query"} | {"queryEmbedding": _base64(vector)}
                for body, vector in zip(texts, vectors, strict=True)
            ],
        )
        by_words, found_by_words = _ask(product, [body | {"mode": "keyword"} for body in texts])
        hybrid, found_by_both = _ask(product, texts)
        # The repository's own text, a file a thread; and the same where no node names one.
        documents = own_text(Path(place))
        in_files, apart = _documents(product, documents, "files", THREAD), _documents(product, documents, "apart", None)
    count = len(corpus.turns)
    rows = [
        ("ingest, posting only (200 nodes a request, the worker embeds meanwhile)", f"{count / posted:.0f} turns/s"),
        ("ingest, until every turn is found by meaning", f"{count / indexed:.0f} turns/s"),
        ("search by text, semantic (the server embeds the query)", spread(by_text)),
        ("search by vector", spread(by_vector)),
        ("search by words", spread(by_words)),
        ("search by text, hybrid (the default)", spread(hybrid)),
        ("evidence recall@10, by text", f"{evidence_recall(corpus.questions, found):.4f}{_known(corpus)}"),
        ("evidence recall@10, by vector", f"{evidence_recall(corpus.questions, found_by_vector):.4f}"),
        ("evidence recall@10, by words", f"{evidence_recall(corpus.questions, found_by_words):.4f}"),
        ("**evidence recall@10, hybrid**", f"{evidence_recall(corpus.questions, found_by_both):.4f} (goal 0.78)"),
        ("hit@10, hybrid", f"{hit_share(corpus.questions, found_by_both):.4f}"),
        ("own text: evidence recall@10, hybrid", f"{evidence_recall(documents.questions, in_files):.4f}"),
        ("own text, no threads: the same", f"{evidence_recall(documents.questions, apart):.4f}"),
        (
            "own text: hit@10, hybrid; no threads",
            f"{hit_share(documents.questions, in_files):.4f}; {hit_share(documents.questions, apart):.4f}",
        ),
    ]
    return Table(
        "recall",
        rows,
        f"Data: {corpus.name}, {count:,} turns, {len(corpus.questions):,} questions; top 10, one client; a session is a thread. Own text: "
        f"{len(documents.turns):,} paragraphs and docstrings, {len(documents.questions):,} headings and names, a file is a thread",
    )


def _documents(product: Product, documents: Corpus, namespace: str, thread: str | None) -> list[list[str]]:
    """What a hybrid search finds of the repository's own text."""
    _ingest(product, documents, "--namespace", namespace, thread=thread)
    return _ask(product, [_body(question) | {"namespace": namespace} for question in documents.questions])[1]


def _known(corpus: Corpus) -> str:
    return "" if corpus.recall is None else f" (exact search in NumPy: {corpus.recall})"


def _ingest(product: Product, corpus: Corpus, *more: str, thread: str | None = THREAD) -> tuple[float, float]:
    """Seconds until everything is stored, and until everything is indexed."""
    began = time.monotonic()
    threads = () if thread is None else ("--thread", thread)
    done = product.ctl("ingest", str(corpus.path), "--content", TEMPLATE, *threads, *more, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["created"] >= len(corpus.turns), summary  # a long one is cut into several
    while httpx2.get(f"{product.url}/healthz").json()["indexing"]["pending"]:
        time.sleep(0.05)
    return float(summary["seconds"]), time.monotonic() - began


async def _embed(corpus: Corpus) -> NDArray[np.float32]:
    embedder = LocalEmbedder()
    try:
        return (await embedder.embed([question.text for question in corpus.questions], query=True)).vectors
    finally:
        await embedder.close()


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _body(question: Question) -> dict[str, Any]:
    return {"query": question.text, "topK": 10, "filter": {"metadata.conversation": question.conversation}}


def _ask(product: Product, bodies: list[dict[str, Any]]) -> tuple[list[float], list[list[str]]]:
    """Latencies in seconds, and the turns found."""
    headers = {"Authorization": f"Bearer {product.token}", "Content-Type": "application/json"}
    with httpx2.Client(base_url=product.url, headers=headers, timeout=30) as http:
        post: Callable[[bytes], httpx2.Response] = lambda body: http.post("/v1/memory/search", content=body)  # noqa: E731
        encoded = [json.dumps(body).encode() for body in bodies]
        for body in encoded[:WARM_UP]:
            post(body)
        seconds, found = [], []
        for body in encoded:
            began = time.perf_counter()
            answer = post(body)
            seconds.append(time.perf_counter() - began)
            assert answer.status_code == 200, answer.text
            found.append([hit["metadata"]["turn"] for hit in answer.json()["results"]])
    return seconds, found
