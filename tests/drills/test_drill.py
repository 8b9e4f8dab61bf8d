"""The drill and the verbs beside it as an operator has them: through memoryctl, on a running product whose index is broken."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psycopg
import pytest

from memory_layer.cli.app import run
from tests.api.door import connect, create, eventually, found_ids
from tests.support.broken_index import Breaker, BrokenMilvus, BrokenPinecone, BrokenTable
from tests.support.pinecone_server import KEY, running_pinecone
from tests.support.product import Product, clean_environment, run_ctl, running_product

DIMENSION = 16
NODES = 40
TENANT, NAMESPACE = "ann", "notes"
pytestmark = pytest.mark.slow


@dataclass
class Running:
    """A product of this module's own, and its index to be broken."""

    product: Product
    broken: Breaker
    settings: dict[str, str]
    nodes: list[uuid.UUID]

    def ctl(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """memoryctl in this process: a hundred starts of Python would take longer than all that they do."""
        out, err = io.StringIO(), io.StringIO()
        line = [*words, "--data", str(self.product.data)]
        environment = clean_environment() | self.settings | more
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = run(line)
        return subprocess.CompletedProcess(line, code, out.getvalue(), err.getvalue())

    def json(self, *words: str, code: int = 0, **more: str) -> Any:
        done = self.ctl(*words, "--json", **more)
        assert done.returncode == code, done.stderr + done.stdout
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running_pinecone(DIMENSION, delay=0.002) as server:
        settings = {"EMBEDDINGS_PROVIDER": "none"}
        provider = getattr(request, "param", "pgvector")
        if provider == "pinecone":
            settings |= {"VECTOR_DB_PROVIDER": "pinecone", "VECTOR_DB_ENDPOINT": server.url, "VECTOR_DB_API_KEY": KEY}
        elif provider == "milvus":
            url = request.getfixturevalue("milvus").url
            settings |= {"VECTOR_DB_PROVIDER": "milvus", "VECTOR_DB_ENDPOINT": url}
        with running_product(environment=settings) as product:
            noise = np.random.default_rng(3).standard_normal((NODES, DIMENSION))
            with connect(product, TENANT) as http:
                nodes = [uuid.UUID(create(http, namespace=NAMESPACE, embedding=vector(row))) for row in noise]
                eventually(lambda: [_status(http, node) for node in nodes], lambda all_: set(all_) == {"succeeded"})
            broken: Breaker = BrokenTable(product.database.replace("memory_app@", "postgres@"))
            if provider == "pinecone":
                broken = BrokenPinecone(server)
            elif provider == "milvus":
                broken = BrokenMilvus(url, "dev", DIMENSION)
            yield Running(product, broken, settings, nodes)
            if isinstance(broken, BrokenMilvus):
                broken.close()
        assert server.faulty_answers == []


def _status(http: Any, node: uuid.UUID) -> str:
    return str(http.get(f"/v1/memory/nodes/{node}").json()["vector"]["status"])


def vector(row: Any) -> dict[str, Any]:
    return {"model": "test-model", "dimension": DIMENSION, "vector": [float(number) for number in row]}


def break_it(running: Running) -> None:
    running.broken.lose(TENANT, NAMESPACE, running.nodes[:3])
    running.broken.put(TENANT, NAMESPACE, running.nodes[5], 1, [1] * DIMENSION)
    running.broken.put(TENANT, NAMESPACE, uuid.uuid4(), 2, [1] * DIMENSION)


def test_status_tells_what_differs(running: Running) -> None:
    fine = running.json("vectors", "status", "--tenant", TENANT)
    (space,) = fine["spaces"]
    assert (space["state"], space["expected"], space["index"]) == ("equal", NODES, NODES)
    assert space["expectedDigest"] == space["indexDigest"]
    assert space["rows"]["succeeded"] == NODES
    break_it(running)
    odd = running.json("vectors", "status", "--tenant", TENANT, code=1)
    (space,) = odd["spaces"]
    assert (space["state"], space["differences"]["missing"], space["differences"]["extra"]) == ("differs", 3, 1)
    assert space["expectedDigest"] != space["indexDigest"]
    table = running.ctl("vectors", "status", "--tenant", TENANT)
    assert table.returncode == 1
    header, line = (text.split("\t") for text in table.stdout.splitlines())
    row = dict(zip(header, line, strict=True))
    assert (row["namespace"], row["state"], row["settled"], row["index"]) == (NAMESPACE, "differs", "40", "38")
    assert running.json("vectors", "reconcile", "--repair", "--vectors", "all")["facts"]["differences"] == {}


def test_reconcile_names_and_repairs_with_the_products_own_worker(running: Running) -> None:
    break_it(running)
    looked = running.json("vectors", "reconcile", "--vectors", "all", code=1)
    assert looked["facts"]["differences"] == {"missing": 3, "extra": 1, "wrong": 1}
    named = {found["id"]: found["evidence"] for found in looked["findings"] if found["status"] == "fail"}
    assert {one["node"] for one in named["vectors.missing"]["examples"]} == {str(node) for node in running.nodes[:3]}
    assert [one["node"] for one in named["vectors.wrong"]["examples"]] == [str(running.nodes[5])]
    healed = running.json("vectors", "reconcile", "--vectors", "all", "--repair")
    assert healed["facts"]["found"] == {"missing": 3, "extra": 1, "wrong": 1}
    assert (healed["facts"]["differences"], healed["facts"]["sentAgain"], healed["facts"]["removed"]) == ({}, 4, 1)
    with connect(running.product, TENANT) as http:
        noise = np.random.default_rng(3).standard_normal((NODES, DIMENSION))
        for node, row in zip(running.nodes[:6], noise[:6], strict=True):
            body = {"namespace": NAMESPACE, "queryEmbedding": [float(number) for number in row], "topK": 1}
            assert found_ids(http, **body) == [str(node)]


def test_the_drill_brings_a_broken_index_back_and_says_so(running: Running) -> None:
    break_it(running)
    done = running.json("drill", "vector-desync", "--vectors", "all")
    assert [one["id"] for one in done["findings"]] == [
        "drill.replay", "drill.compare", "drill.repair", "drill.verify", "drill.recall",
    ]  # fmt: skip
    facts = done["facts"]
    assert facts["found"] == {"missing": 3, "extra": 1, "wrong": 1}
    assert facts["recall"][f"{TENANT}/{NAMESPACE}"] == 1.0
    assert 0 < facts["rtoSeconds"] < 60
    assert set(facts["seconds"]) == {"replay", "compare", "repair", "verify", "recall"}
    assert facts["expectedDigest"] == facts["indexDigest"]
    environment = clean_environment() | running.settings
    shown = run_ctl("runs", "show", done["runId"], "--data", str(running.product.data), env=environment)
    assert shown.returncode == 0
    assert "No differences in the end." in shown.stdout
    with psycopg.connect(running.product.database.replace("memory_app@", "postgres@")) as connection:
        query = "SELECT e.event_type FROM audit_events e JOIN ops_runs r ON r.audit_id = e.id WHERE r.id = %s"
        assert connection.execute(query, [done["runId"]]).fetchall() == [("ops.drill-vector-desync.succeeded",)]


def test_what_cannot_be_repaired_fails_the_drill(running: Running) -> None:
    running.broken.put(TENANT, NAMESPACE, running.nodes[7], 9, [1] * DIMENSION)
    done = running.json("drill", "vector-desync", code=1)
    assert done["facts"]["rtoSeconds"] is None
    failed = [one["id"] for one in done["findings"] if one["status"] == "fail"]
    assert failed[:2] == ["drill.verify", "vectors.ahead"]
    with psycopg.connect(running.product.database.replace("memory_app@", "postgres@")) as connection:
        query = "SELECT e.event_type FROM audit_events e JOIN ops_runs r ON r.audit_id = e.id WHERE r.id = %s"
        assert connection.execute(query, [done["runId"]]).fetchall() == [("ops.drill-vector-desync.failed",)]
    refused = running.ctl("vectors", "reindex", "--drop", "--namespace", NAMESPACE)
    assert (refused.returncode, refused.stdout) == (2, "")
    rebuilt = running.json("vectors", "reindex", "--drop", "--tenant", TENANT, "--namespace", NAMESPACE, "--yes")
    assert (rebuilt["facts"]["sent"], rebuilt["facts"]["differences"]) == (NODES, {})
    assert running.json("vectors", "status")["differences"] == {}


def test_a_drill_breaks_an_index_of_its_own(running: Running) -> None:
    done = running.json("drill", "vector-desync", "--inflict")
    facts = done["facts"]
    assert facts["inflicted"] == facts["found"]
    assert set(facts["inflicted"]) == {"missing", "stale", "wrong", "extra"}
    assert facts["expected"] == facts["index"] == 200
    assert list(facts["recall"]) == [f"memory-layer-drill/drill-{DIMENSION}"]
    left = running.json("vectors", "status")
    spaces = {space["tenant"]: space for space in left["spaces"]}
    assert (spaces["memory-layer-drill"]["index"], spaces["memory-layer-drill"]["rows"]["deleted"]) == (0, 200)
    assert spaces[TENANT]["index"] == NODES
    assert running.ctl("audit", "verify").returncode == 10  # consistent; nobody brought an anchor


def test_a_drill_that_freezes_writes_lets_them_go_on(running: Running) -> None:
    answers: list[tuple[int, str]] = []
    written: list[str] = []
    over = threading.Event()
    body = {"owner": "ann", "namespace": "n", "embedding": vector(np.ones(DIMENSION))}

    def write() -> None:
        with connect(running.product, "frozen-out") as http:
            while not over.is_set():
                answer = http.post("/v1/memory/nodes", json=body)
                answers.append((answer.status_code, answer.json().get("error", {}).get("code", "")))
                if answer.status_code == 201:
                    written.append(answer.json()["memoryNodeId"])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = running.json(
            "drill", "vector-desync", "--inflict", "--freeze"
        )  # its own index is cleared away at the end
    finally:
        over.set()
        writer.join()
    order = [one["id"] for one in done["findings"]]
    assert order[:2] == ["drill.inflict", "freeze.on"]
    assert order[-1] == "freeze.off"
    assert done["facts"]["differences"] == {}
    assert (503, "FROZEN") in answers
    assert {status for status, _ in answers} <= {201, 503}
    assert answers[0][0] == 201
    with connect(running.product, "frozen-out") as http:
        written.append(create(http, namespace="n", embedding=vector(np.ones(DIMENSION))))
        for node in written:  # what is in the index else, other tests count
            assert http.delete(f"/v1/memory/nodes/{node}").status_code == 204
    running.json("vectors", "replay", "--tenant", "frozen-out")

    # An operator's own freeze is not the drill's to lift, nor to change.
    try:
        frozen = running.json("freeze", "on", "--reason", "a restore is settled")["facts"]
        done = running.json("drill", "vector-desync", "--freeze")
        assert "stay so" in next(one["finding"] for one in done["findings"] if one["id"] == "freeze.on")
        assert running.json("freeze", "status")["since"] == frozen["since"]
    finally:
        running.ctl("freeze", "off")


def test_a_drill_on_the_live_index_with_a_snapshot(running: Running, tmp_path: Path) -> None:
    folder = str(tmp_path / "snapshot")
    kept = running.json("vectors", "snapshot", folder)["facts"]
    assert (kept["vectors"], kept["dirty"]) == (NODES, False)
    words = ("drill", "vector-desync", "--inflict", "--live", "--tenant", TENANT, "--snapshot", folder)
    assert running.ctl(*words).returncode == 2  # it has to be said twice
    done = running.json(*words, "--yes")
    assert done["facts"]["inflicted"]["missing"] > 0
    assert done["facts"]["found"] == done["facts"]["inflicted"]
    steps = {one["id"]: one for one in done["findings"]}
    assert f"{NODES} vectors were written from the snapshot" in steps["drill.restore"]["finding"]
    assert done["facts"]["differences"] == {}


def test_nothing_is_broken_in_production(running: Running) -> None:
    done = running.ctl("drill", "vector-desync", "--inflict", SERVICE_ENV="prod")
    assert (done.returncode, done.stdout) == (4, "")
    assert "SERVICE_ENV is prod" in done.stderr


def test_what_is_not_there_is_no_success(running: Running, tmp_path: Path) -> None:
    """A name that was mistyped must not read as: all is well."""
    folder = tmp_path / "snapshot"
    running.json("vectors", "snapshot", str(folder))
    spaces = running.json("vectors", "restore", str(folder), "--plan")["spaces"]
    assert {"tenant": TENANT, "namespace": NAMESPACE, "vectors": NODES} in spaces
    for words in (
        ["vectors", "status"],
        ["vectors", "reconcile"],
        ["vectors", "replay"],
        ["vectors", "reindex"],
        ["vectors", "snapshot", str(tmp_path / "other")],
        ["vectors", "restore", str(folder), "--plan"],
        ["vectors", "restore", str(folder)],
        ["drill", "vector-desync"],
    ):
        done = running.ctl(*words, "--tenant", "nan")
        assert (done.returncode, done.stdout) == (1, ""), words
        assert "no index namespace of tenant nan" in done.stderr
        done = running.ctl(*words, "--tenant", TENANT, "--namespace", "note")
        assert (done.returncode, done.stdout) == (1, ""), words
        assert f"no index namespace note of tenant {TENANT}" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_snapshot_that_was_tampered_with_is_refused(running: Running, tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    kept = running.json("vectors", "snapshot", str(folder), "--tenant", TENANT)
    assert kept["facts"]["signedBy"]
    plan = running.json("vectors", "restore", str(folder), "--plan")
    assert (plan["vectors"], plan["sha256"]) == (NODES, kept["facts"]["sha256"])
    whole = running.json("vectors", "restore", str(folder))
    assert (whole["facts"]["written"], whole["facts"]["differences"]) == (NODES, {})
    shard = next(folder.glob("*/vectors-*.npy"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused = running.ctl("vectors", "restore", str(folder))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{shard} was changed" in refused.stderr
    newest = running.json("runs", "list", "--verb", "vectors-restore", "--limit", "1")[0]
    assert (newest["verdict"], newest["exit"]) == ("findings", 1)


def test_a_snapshot_comes_back_out_of_the_archive(running: Running, tmp_path: Path) -> None:
    folder = tmp_path / "vectors-of-the-drill"
    kept = running.json("vectors", "snapshot", str(folder), "--tenant", TENANT, "--lock-days", "30")["facts"]
    assert kept["archived"]["key"] == "vectors/vectors-of-the-drill/manifest.json"
    shutil.rmtree(folder)
    plan = running.json("vectors", "restore", folder.name, "--from-archive", "--plan")
    assert plan["sha256"] == kept["sha256"]
    back = running.json("vectors", "restore", folder.name, "--from-archive")["facts"]
    assert (back["written"], back["snapshot"]) == (NODES, kept["sha256"])
    assert running.ctl("vectors", "restore", "another", "--from-archive").returncode == 1
    assert running.ctl("vectors", "snapshot", str(folder), "--lock-days", "0").returncode == 2


def test_replay_waits_for_the_worker(running: Running) -> None:
    with psycopg.connect(running.product.database.replace("memory_app@", "postgres@"), autocommit=True) as connection:
        for node, status in zip(running.nodes[:2], ("failed", "dead"), strict=True):
            connection.execute(
                "UPDATE memory_vectors SET status = %s, error = 'x', error_class = 'retryable' WHERE memory_node_id = %s",
                [status, node],
            )
    warned = running.json("vectors", "reconcile")
    assert {one["id"]: one["level"] for one in warned["findings"]}["vectors.failed"] == "warning"
    done = running.json("vectors", "replay")
    assert done["facts"] == {"rows": 2, "before": {"failed": 1, "dead": 1}, "settled": 2}


def test_without_a_worker_the_command_works_itself(running: Running) -> None:
    """Rows that no worker will take: they are leased to one that is gone, until the command comes."""
    with psycopg.connect(running.product.database.replace("memory_app@", "postgres@"), autocommit=True) as connection:
        connection.execute(
            "UPDATE memory_vectors SET status = 'pending', next_attempt_at = now() + interval '1 hour' WHERE memory_node_id = %s",
            [running.nodes[0]],
        )
    done = running.json("vectors", "replay", "--here", "--timeout", "60")
    assert done["facts"]["settled"] == 1
    eventually(lambda: running.json("vectors", "status")["rows"], lambda rows: set(rows) <= {"succeeded", "deleted"})


@pytest.mark.parametrize("running", ["pinecone", pytest.param("milvus", marks=pytest.mark.real)], indirect=True)
def test_the_drill_on_another_provider(running: Running, tmp_path: Path) -> None:
    """Broken, brought back by the drill; then the drill breaks an index of its own; and a snapshot comes back."""
    break_it(running)
    done = running.json("drill", "vector-desync", "--vectors", "all")
    assert done["facts"]["found"] == {"missing": 3, "extra": 1, "wrong": 1}
    assert done["facts"]["differences"] == {}
    own = running.json("drill", "vector-desync", "--inflict")["facts"]
    assert own["inflicted"] == own["found"]
    assert (own["differences"], own["expected"]) == ({}, 200)
    running.json("vectors", "snapshot", str(tmp_path / "s"), "--tenant", TENANT)
    running.broken.lose(TENANT, NAMESPACE, running.nodes)
    back = running.json("vectors", "restore", str(tmp_path / "s"))["facts"]
    assert (back["written"], back["found"], back["index"]) == (NODES, {}, NODES)
