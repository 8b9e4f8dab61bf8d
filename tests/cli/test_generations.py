"""A namespace goes from one model to another while clients write and search through HTTP all the time."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.api.door import connect, create, create_indexed, eventually, found_ids
from tests.support.embedding_server import running_embeddings
from tests.support.product import Product, clean_environment, run_ctl, running_product
from tests.support.stand_in import StandIn

OLD, NEW = "words-384", "words-768"
NAME = "kernel-memory"
READ = ("memory:read", "read:pii")


def settings(server: StandIn) -> dict[str, str]:
    first = {"PROVIDER": "openai", "MODEL": OLD, "DIMENSIONS": "384", "ENDPOINT": f"{server.url}/v1"}
    second = {"PROVIDER": "openai", "MODEL": NEW, "DIMENSIONS": "768", "ENDPOINT": f"{server.url}/v1"}
    return {f"EMBEDDINGS_{k}": v for k, v in first.items()} | {f"EMBEDDINGS_NEXT_{k}": v for k, v in second.items()}


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with running_embeddings() as running:
        yield running


@pytest.fixture(scope="module")
def product(server: StandIn) -> Iterator[Product]:
    """Two API processes and a worker, each with both models."""
    with running_product("--processes", "2", environment=settings(server)) as running:
        yield running


@pytest.fixture
def ctl(product: Product, server: StandIn, tenant: str) -> Any:
    """Run a command on this test's tenant; its report."""

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        command = ("vectors", *words, "--tenant", tenant, "--data", str(product.data), "--json")
        done = run_ctl(*command, env=clean_environment() | settings(server))
        assert done.returncode == code, done.stdout + done.stderr
        report: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"stderr": done.stderr}
        return report

    return run


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {finding["id"]: finding["status"] for finding in report["findings"]}


def held(product: Product, tenant: str) -> dict[str, int]:
    """Index namespace to how many entries of it the index holds. Marks of removals do not count: a round that a delete took the lease
    from writes after the drop, takes that out again, and leaves its mark for a day."""
    with product.owner() as connection:
        found = connection.execute(
            "SELECT namespace, count(*) FROM vector_entries WHERE tenant = %s AND removed_at IS NULL GROUP BY 1",
            [tenant],
        ).fetchall()
        # Where this machine was slow, clients wrote for so long that the namespace has a table of its own.
        own = "SELECT namespace, number FROM vector_spaces.registry WHERE tenant = %s AND number IS NOT NULL"
        for name, number in connection.execute(own, [tenant]).fetchall():
            rows = f"SELECT %s::text, count(*) FROM vector_spaces.space_{number} WHERE removed_at IS NULL"
            found += connection.execute(rows, [name]).fetchall()
    return {str(name): int(str(count)) for name, count in found if count}


@dataclass
class Traffic:
    """Writers and searchers, and what they hold the product to."""

    product: Product
    tenant: str
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    findable: dict[str, str] = field(default_factory=dict)  # node to its text, once its write said that it is indexed
    gone: set[str] = field(default_factory=set)
    written: int = 0
    searched: int = 0

    def write(self, number: int) -> None:
        choice = random.Random(number)
        with connect(self.product, self.tenant, service=f"writer-{number}") as http:
            while not self.stop.is_set():
                kind = choice.random()
                if kind < 0.6:
                    text = f"note {uuid.uuid4().hex} of writer {number}"
                    made = http.post("/v1/memory/nodes?wait=indexed", json={"owner": "ann", "content": text})
                    assert made.status_code in (201, 202), made.text
                    if made.status_code == 201:
                        with self.lock:
                            self.findable[made.json()["memoryNodeId"]] = text
                elif kind < 0.8 and (node := self.pick(choice)) is not None:
                    done = http.patch(f"/v1/memory/nodes/{node}", json={"metadata": {"at": choice.random()}})
                    assert done.status_code in (200, 404, 428), done.text
                    assert done.status_code == 200 or node not in self.findable, done.text
                elif (node := self.pick(choice)) is not None:
                    with self.lock:
                        mine = self.findable.pop(node, None) is not None
                    if mine:
                        assert http.delete(f"/v1/memory/nodes/{node}").status_code == 204
                        with self.lock:
                            self.gone.add(node)
                with self.lock:
                    self.written += 1

    def search(self, number: int) -> None:
        choice = random.Random(100 + number)
        with connect(self.product, self.tenant, READ, service=f"reader-{number}") as http:
            while not self.stop.is_set():
                node = self.pick(choice)
                if node is None:
                    continue
                with self.lock:
                    text, before = self.findable.get(node), set(self.gone)
                if text is None:
                    continue
                found = found_ids(http, query=text, mode="semantic", topK=10)
                with self.lock:
                    assert node in found or node not in self.findable, f"{text} was not found"
                    assert not before & set(found), "what was deleted was found"
                    self.searched += 1

    def pick(self, choice: random.Random) -> str | None:
        with self.lock:
            return choice.choice(list(self.findable)) if self.findable else None

    def pass_on(self, count: int = 15) -> None:
        """Wait until so many more searches and some writes have gone well, or until one has not."""
        searched, written = self.searched + count, self.written + 4
        deadline = time.monotonic() + 60
        while (self.searched < searched or self.written < written) and not self.stop.is_set():
            assert time.monotonic() < deadline, "writers or searchers stand still"
            time.sleep(0.02)


@pytest.mark.slow
def test_clients_notice_nothing(product: Product, ctl: Any, tenant: str, tmp_path: Path) -> None:
    with connect(product, tenant) as http:
        old = [{"owner": "ann", "content": f"letter {n} about subject-{n} and topic-{n % 7}"} for n in range(150)]
        answer = http.post("/v1/memory/nodes:batch", json=old)
        assert answer.status_code == 200, answer.text
        ids = [item["memoryNodeId"] for item in answer.json()["items"]]
        eventually(lambda: held(product, tenant), lambda now: now == {NAME: 150}, within=120)
    traffic = Traffic(product, tenant, findable={i: str(node["content"]) for i, node in zip(ids, old, strict=True)})
    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(work, number) for number in range(2) for work in (traffic.write, traffic.search)]
        for task in tasks:  # the first that fails ends the run
            task.add_done_callback(lambda done: traffic.stop.set() if done.exception() else None)
        try:
            traffic.pass_on()
            assert "is built" in ctl("cutover", code=1)["stderr"]
            report = ctl("reembed", "--model", NEW, "--dimension", "768")
            assert statuses(report)["generation.coverage"] == "pass"
            assert report["facts"]["generation"]["indexNamespace"] == f"{NAME}#2"
            traffic.pass_on()
            questions = tmp_path / "questions.txt"
            questions.write_text("".join(f"letter {n} about subject-{n} and topic-{n % 7}\n\n" for n in range(30)))
            report = ctl("compare", "-k", "1", "--least", "0.5", "--queries", str(questions))
            assert (report["facts"]["overlap"]["queries"], report["verdict"]) == (30, "ok")
            # Two models agree on texts that are there word by word, and on little beyond: that is found out too.
            assert statuses(ctl("compare", "--least", "0.99", code=1))["generation.overlap"] == "fail"
            report = ctl("compare", "--sample", "50", "--least", "0.1")
            # Not 1.0: clients change and delete some of the sampled texts meanwhile.
            assert min(report["facts"]["ownText"]["new"], report["facts"]["ownText"]["old"]) >= 0.9
            assert report["facts"]["coverage"]["beside"] >= 100
            ctl("cutover")
            traffic.pass_on()
            assert product_generations(ctl, tenant)["active"]["model"] == NEW
            ctl("rollback")
            traffic.pass_on()
            assert product_generations(ctl, tenant)["active"]["model"] == OLD
            ctl("cutover")
            traffic.pass_on()
            report = ctl("retire")
            assert report["facts"]["dropped"] == NAME
            traffic.pass_on()
        finally:
            traffic.stop.set()
        for task in tasks:
            task.result()
    assert traffic.written > 20
    with connect(product, tenant) as http:
        # No write is lost: each is there, in the one generation that is left, and nothing of the old one.
        live = set(traffic.findable)
        with product.owner() as connection:
            stored = connection.execute(
                "SELECT id::text FROM memory_nodes WHERE tenant = %s AND deleted_at IS NULL", [tenant]
            ).fetchall()
        assert live <= {str(row[0]) for row in stored}
        assert not traffic.gone & {str(row[0]) for row in stored}
        eventually(lambda: _waiting(product, tenant), lambda waiting: waiting == 0, within=60)
        eventually(lambda: set(held(product, tenant)), lambda names: names == {f"{NAME}#2"}, within=60)
        for node in random.Random(0).sample(sorted(live), 50):
            assert found_ids(http, query=traffic.findable[node], mode="semantic", topK=1) == [node]
            assert node in found_ids(http, query=traffic.findable[node], mode="keyword")
    done = product.ctl("audit", "verify", "--data", str(product.data))
    assert done.returncode == 10, done.stdout


def product_generations(ctl: Any, tenant: str) -> dict[str, Any]:
    (space,) = ctl("generations", "--all")
    assert space["tenant"] == tenant
    return dict(space)


def _waiting(product: Product, tenant: str) -> int:
    with product.owner() as connection:
        row = connection.execute(
            "SELECT count(*) FROM memory_vectors WHERE tenant = %s AND status NOT IN ('succeeded', 'deleted')", [tenant]
        ).fetchone()
    assert row is not None
    return int(str(row[0]))


def test_what_is_refused_and_what_is_reported(product: Product, ctl: Any, server: StandIn, tenant: str) -> None:
    with connect(product, tenant) as http:
        node = create_indexed(http, content="north gate")
        bare = {"model": OLD, "dimension": 384, "vector": [1.0] + [0.0] * 383}
        given = create(http, embedding=bare)
        assert "is built" in ctl("cutover", code=1)["stderr"]
        assert "is kept" in ctl("rollback", code=1)["stderr"]
        assert "nothing to retire" in ctl("retire", code=1)["stderr"]
        assert "No embedder of words-5" in ctl("reembed", "--model", "words-5", code=2)["stderr"]
        assert "no namespace other" in ctl("reembed", "--namespace", "other", code=1)["stderr"]
        assert "already" in ctl("reembed", "--model", OLD, code=2)["stderr"]
        # The settings say which is the next one. One node has no text.
        report = ctl("reembed")
        assert statuses(report) == {"generation.given": "fail", "generation.coverage": "pass"}
        assert (report["facts"]["coverage"]["given"], report["facts"]["coverage"]["beside"]) == (1, 1)
        assert "is being built" in ctl("retire", code=4)["stderr"]
        refused = ctl("cutover", "--within", "0", code=4)
        assert "1 have no text" in refused["stderr"]
        done = http.patch(
            f"/v1/memory/nodes/{given}",
            json={"embedding": {"model": NEW, "dimension": 768, "vector": [1.0] + [0.0] * 767}},
        )
        assert done.status_code == 200, done.text
        report = ctl("cutover")
        assert report["facts"]["active"] == {"indexNamespace": f"{NAME}#2", "model": NEW, "dimension": 768}
        assert http.get(f"/v1/memory/nodes/{node}").json()["vector"]["model"] == NEW
        # A node that the kept generation cannot have is told of, and does not keep the way back.
        late = create_indexed(http, embedding={"model": NEW, "dimension": 768, "vector": [0.0, 1.0] + [0.0] * 766})
        report = ctl("rollback")
        assert statuses(report)["generation.lacks"] == "fail"
        assert report["facts"]["leftBehind"] == 1
        assert http.get(f"/v1/memory/nodes/{given}").json()["vector"]["model"] == OLD
        assert "1 nodes are found in" in ctl("retire", "--abandon", code=4)["stderr"]
        report = ctl("retire", "--abandon", "--leave-behind")
        assert report["facts"]["dropped"] == f"{NAME}#2"
        assert set(held(product, tenant)) == {NAME}
        assert http.get(f"/v1/memory/nodes/{late}").status_code == 200
        assert found_ids(http, query="north gate")[0] == node
    done = product.ctl("audit", "verify", "--data", str(product.data))
    assert done.returncode == 10, done.stdout


def test_the_worker_does_what_the_command_does_not_wait_for(product: Product, ctl: Any, tenant: str) -> None:
    with connect(product, tenant) as http:
        first = create_indexed(http, content="north gate")
        report = ctl("reembed", "--no-wait")
        assert "generation" in report["facts"]
        second = create_indexed(http, content="south gate")
        assert set(found_ids(http, query="gate", mode="semantic")) == {first, second}
        eventually(lambda: held(product, tenant), lambda now: now.get(f"{NAME}#2", 0) >= 1, within=60)
        # The worker fills by itself what the command did not wait for.
        with product.owner() as connection:
            connection.execute("UPDATE ops_schedule SET next_due = clock_timestamp() WHERE job = 'reembed'")
        report = ctl("reembed")
        assert statuses(report)["generation.coverage"] == "pass"
        assert held(product, tenant) == {NAME: 2, f"{NAME}#2": 2}

        # Words belong to the namespace, whichever of its generations is looked at, and count once.
        def older_words(*words: str) -> int:
            with product.owner() as connection:
                connection.execute("UPDATE memory_terms SET analyser = 0 WHERE tenant = %s", [tenant])
            return int(ctl("status", *words)["olderWords"])

        for words in ((), ("--namespace", f"{NAME}#2")):
            eventually(partial(older_words, *words), lambda now: now == 2, within=60)
