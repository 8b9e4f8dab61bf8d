"""`memoryctl provision plan / apply vectors`: real Postgres, and Pinecone's control plane emulated. Missing is made once, drift told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from memory_layer import config
from memory_layer.cli import main
from memory_layer.config import Settings
from memory_layer.errors import VectorStoreUnavailable
from memory_layer.ops import embedded, migrate
from memory_layer.ops.checks import Survey
from memory_layer.ops.provision import sizing, vectors_pinecone
from memory_layer.stores.vectors import open_vectors
from memory_layer.stores.vectors.pgvector import open_pgvector
from tests.support.databases import new_database
from tests.support.pinecone_control_server import ControlServer, running_control
from tests.support.pinecone_server import KEY
from tests.support.service import rows
from tests.support.vector_entries import SPACE, entry, found

Run = Callable[..., tuple[int, str, str]]
NAME = "kernel-memory-staging"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SERVICE_ENV", "staging")
    for name in ("DATABASE_URL", "MIGRATION_DATABASE_URL", "VECTOR_DB_ENDPOINT", "VECTOR_PROJECTED_QPS"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["provision", *words])
        out, err = capsys.readouterr()
        assert KEY not in out + err
        return int(ended.value.code or 0), out, err

    return call


def statuses(out: str) -> dict[str, str]:
    """What each finding says, without the vendor's name: pass, skip, or missing, or drift."""
    findings = json.loads(out)["findings"]
    return {one["id"].removeprefix("vectors."): one["evidence"].get("state", one["status"]) for one in findings}


def finding(out: str, name: str) -> dict[str, Any]:
    return next(one for one in json.loads(out)["findings"] if one["id"] == f"vectors.{name}")


async def use(settings: Settings) -> list[int]:
    """What a search finds after a write, as the service does both."""
    store = await open_vectors(settings)
    await store.upsert([entry("acme", 1, [1, 0])])
    answer = await found(store, "acme", [1, 0])
    await store.close()
    return answer


# --- pgvector


@pytest.fixture
def bare(cluster: embedded.Cluster, monkeypatch: pytest.MonkeyPatch, run: Run) -> Iterator[Callable[[str], str]]:
    """A database without the adapter's tables; VECTOR_DB_ENDPOINT names it, as its owner."""
    with new_database(cluster, "template1") as made:
        monkeypatch.setenv("VECTOR_DB_ENDPOINT", made("postgres"))
        yield made


def tables(dsn: str) -> list[str]:
    return [row[0] for row in rows(dsn, "SELECT relname FROM pg_class WHERE relname LIKE 'vector%%' AND relkind = 'r'")]


def test_what_pgvector_lacks_is_planned_made_and_then_there(run: Run, bare: Callable[[str], str]) -> None:
    code, out, _ = run("plan", "vectors", "--json")
    assert code == 1
    assert statuses(out) == {
        "pgvector.extension": "missing",
        "pgvector.tables": "missing",
        "pgvector.grants": "missing",
        "pgvector.replicas": "drift",
        "sizing": "skip",
    }
    assert finding(out, "pgvector.replicas")["level"] == "warning"  # which decides no exit
    assert tables(bare("postgres")) == []

    code, _, err = run("apply", "vectors", "--yes")
    assert code == 0
    assert "made: extension vector" in err
    assert "vector_entries" in tables(bare("postgres"))
    for verb in ("plan", "apply"):
        code, out, _ = run(verb, "vectors", "--json")
        assert code == 0
        assert {status for name, status in statuses(out).items() if "replicas" not in name} == {"pass", "skip"}
    assert json.loads(out)["facts"]["made"] == []

    assert asyncio.run(use(config.load(vector_db_endpoint=bare("memory_app")))) == [1]


def test_a_right_that_was_taken_is_granted_again(run: Run, bare: Callable[[str], str]) -> None:
    migrate.apply_pgvector(bare("postgres"))
    with psycopg.connect(bare("postgres"), autocommit=True) as owner:
        owner.execute("REVOKE DELETE, INSERT ON vector_entries FROM memory_app")
    code, out, _ = run("plan", "vectors", "--json")
    assert (code, statuses(out)["pgvector.grants"]) == (1, "missing")
    assert "INSERT on vector_entries" in finding(out, "pgvector.grants")["finding"]
    code, out, _ = run("apply", "vectors", "--json")
    assert (code, statuses(out)["pgvector.grants"]) == (0, "pass")
    assert "DELETE on vector_entries" in json.loads(out)["facts"]["made"][0]


def test_rights_on_the_tables_of_large_namespaces_are_looked_at_too(run: Run, bare: Callable[[str], str]) -> None:
    migrate.apply_pgvector(bare("postgres"))

    async def grow() -> list[int]:
        store = await open_pgvector(bare("memory_app"), size=2, large=5)
        try:
            if await store.count("acme", SPACE) == 0:
                await store.upsert([entry("acme", n, [1, n]) for n in range(10)])
            await store.optimise("acme", SPACE)
            return await found(store, "acme", [1, 0], limit=1)
        finally:
            await store.close()

    assert asyncio.run(grow()) == [0]
    code, out, _ = run("plan", "vectors", "--json")
    assert (code, statuses(out)["pgvector.spaces"]) == (0, "pass")
    with psycopg.connect(bare("postgres"), autocommit=True) as owner:
        owner.execute("REVOKE SELECT ON vector_spaces.space_1 FROM memory_app")
        owner.execute("REVOKE EXECUTE ON FUNCTION vector_spaces.forget(text, text) FROM memory_app")
    with pytest.raises(VectorStoreUnavailable):
        asyncio.run(grow())
    code, out, _ = run("plan", "vectors", "--json")
    assert (code, statuses(out)["pgvector.spaces"]) == (1, "missing")
    told = finding(out, "pgvector.spaces")["finding"]
    assert "SELECT on vector_spaces.space_1, EXECUTE on vector_spaces.forget" in told
    code, out, _ = run("apply", "vectors", "--json")
    assert (code, statuses(out)["pgvector.spaces"]) == (0, "pass")
    assert asyncio.run(grow()) == [0]


def test_an_extension_that_is_too_old_is_reported_and_left_alone(run: Run, bare: Callable[[str], str]) -> None:
    migrate.apply_pgvector(bare("postgres"))
    with psycopg.connect(bare("postgres"), autocommit=True) as root:
        root.execute("UPDATE pg_extension SET extversion = '0.8.3' WHERE extname = 'vector'")
    for verb in ("plan", "apply"):
        code, out, _ = run(verb, "vectors", "--json")
        assert (code, statuses(out)["pgvector.extension"]) == (1, "drift")
        assert "ALTER EXTENSION vector UPDATE" in finding(out, "pgvector.extension")["hint"]
    assert rows(bare("postgres"), "SELECT extversion FROM pg_extension WHERE extname = 'vector'") == [("0.8.3",)]


def test_who_may_not_see_the_standbys_is_refused_with_the_reason(
    run: Run, bare: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.apply_pgvector(bare("postgres"))
    with psycopg.connect(bare("postgres"), autocommit=True) as root:
        if rows(bare("postgres"), "SHOW max_wal_senders") == [("0",)]:
            pytest.skip("this Postgres takes no replication connections (max_wal_senders = 0)")
        with psycopg.connect(bare("postgres"), replication="database", autocommit=True):
            monkeypatch.setenv("VECTOR_DB_ENDPOINT", bare("memory_app"))
            told = finding(run("plan", "vectors", "--json")[1], "pgvector.replicas")
            assert (told["level"], told["status"], told["evidence"]) == ("info", "skip", {"connected": 1})
            root.execute("GRANT pg_read_all_stats TO memory_app")
            try:
                told = finding(run("plan", "vectors", "--json")[1], "pgvector.replicas")
                assert told["evidence"] == {"state": "drift", "standbys": 0}  # connected, and not following
            finally:
                root.execute("REVOKE pg_read_all_stats FROM memory_app")


def test_a_database_that_is_down_or_not_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("plan", "vectors")[0] == 2
    monkeypatch.setenv("DATABASE_URL", "host=127.0.0.1 port=1 dbname=x password=hidden-word connect_timeout=1")
    code, out, err = run("plan", "vectors")
    assert code == 3
    assert "hidden-word" not in out + err


# --- Pinecone


@pytest.fixture
def control(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlServer]:
    with running_control() as server:
        for name, value in {
            "VECTOR_DB_PROVIDER": "pinecone",
            "VECTOR_DB_CONTROL_ENDPOINT": server.url,
            "VECTOR_DB_API_KEY": KEY,
            "EMBEDDINGS_DIMENSIONS": "2",
        }.items():
            monkeypatch.setenv(name, value)
        yield server
        assert server.faulty_answers == []


def changes(server: ControlServer) -> list[str]:
    """The calls that may have changed something."""
    return [call for call in server.calls if not call.startswith("GET")]


def test_an_index_is_planned_made_waited_for_and_then_there(
    run: Run, control: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run("plan", "vectors", "--json")
    assert (code, statuses(out)) == (1, {"pinecone.index": "missing", "sizing": "skip"})
    assert (control.indexes, changes(control)) == ({}, [])

    control.looks_until_ready = 4
    monkeypatch.setenv("VECTOR_DB_CLOUD", "gcp")
    monkeypatch.setenv("VECTOR_DB_REGION", "us-central1")
    code, out, err = run("apply", "vectors", "--yes", "--json")
    assert code == 0
    assert "waiting until" in err
    index = control.indexes[NAME]
    assert (index["dimension"], index["metric"], index["deletion_protection"]) == (2, "cosine", "enabled")
    assert (index["status"]["ready"], index["tags"]) == (
        True,
        {"application": "memory-layer", "service-env": "staging"},
    )
    facts = json.loads(out)["facts"]
    assert facts["settings"] == {"VECTOR_DB_ENDPOINT": index["host"]}
    assert NAME in facts["made"][0]
    assert finding(out, "pinecone.endpoint")["level"] == "warning"  # nothing is wrong: it is to be set now
    assert finding(out, "pinecone.replicas")["status"] == "skip"

    monkeypatch.setenv("VECTOR_DB_ENDPOINT", index["host"])
    before = changes(control)
    for verb in ("plan", "apply"):
        code, out, _ = run(verb, "vectors", "--json")
        assert (code, set(statuses(out).values())) == (0, {"pass", "skip"})
    assert changes(control) == before == ["POST /indexes"]

    assert asyncio.run(use(config.load())) == [1]


DEDICATED = {"mode": "Dedicated", "dedicated": {"node_type": "b1", "scaling": "Manual", "manual": {"replicas": 2, "shards": 1}},
             "status": {"state": "Ready"}}  # fmt: skip
ON_DEMAND = {"mode": "OnDemand", "status": {"state": "Ready"}}


@pytest.mark.parametrize(
    ("facts", "differs"),
    [
        ({"dimension": 3}, "pinecone.dimension"),
        ({"metric": "dotproduct"}, "pinecone.metric"),
        ({"status": {"ready": False, "state": "Terminating"}}, "pinecone.state"),
        ({"spec": {"serverless": {"cloud": "aws", "region": "eu-west-1", "read_capacity": ON_DEMAND}}}, "pinecone.place"),
        ({"spec": {"pod": {"environment": "us-east-1-aws", "pod_type": "p1.x1", "pods": 1}}}, "pinecone.place"),
        ({"spec": {"serverless": {"cloud": "aws", "region": "us-east-1", "read_capacity": DEDICATED}}}, "pinecone.replicas"),
    ],
    ids=["dimension", "metric", "state", "region", "pods", "dedicated"],
)  # fmt: skip
def test_an_index_that_differs_is_reported_and_left_alone(
    run: Run, control: ControlServer, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], differs: str
) -> None:
    tags = {"application": "memory-layer", "service-env": "staging"}
    index = control.add(NAME, **({"deletion_protection": "enabled", "tags": tags} | facts))
    monkeypatch.setenv("VECTOR_DB_ENDPOINT", index["host"])
    before = json.dumps(index)
    for verb in ("plan", "apply"):
        code, out, _ = run(verb, "vectors", "--json")
        assert code == 1
        assert [name for name, status in statuses(out).items() if status == "drift"] == [differs]
    assert (json.dumps(control.indexes[NAME]), changes(control)) == (before, [])


def test_an_endpoint_of_another_index_is_reported_and_not_shown(
    run: Run, control: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.add(NAME)
    monkeypatch.setenv("VECTOR_DB_ENDPOINT", "https://elsewhere-hidden.example.com")
    code, out, err = run("plan", "vectors", "--json")
    assert (code, statuses(out)["pinecone.endpoint"]) == (1, "drift")
    assert "elsewhere-hidden" not in out + err


def test_an_index_without_protection_gets_it_and_keeps_its_tags(run: Run, control: ControlServer) -> None:
    control.add(NAME, tags={"cost-centre": "7", "service-env": "dev"})
    code, out, _ = run("plan", "vectors", "--json")
    assert (code, statuses(out)["pinecone.protection"]) == (1, "missing")
    assert run("apply", "vectors", "--yes")[0] == 0
    index = control.indexes[NAME]
    assert index["deletion_protection"] == "enabled"
    assert index["tags"] == {"application": "memory-layer", "service-env": "staging", "cost-centre": "7"}


@pytest.mark.parametrize("fault", ["throttle", "500", "torn"])
def test_what_may_pass_is_tried_again_and_makes_no_second_index(run: Run, control: ControlServer, fault: str) -> None:
    control.fault_on = "POST /indexes"
    control.set_fault(fault, times=1)
    assert run("apply", "vectors", "--yes")[0] == 0
    assert (list(control.indexes), changes(control)) == ([NAME], ["POST /indexes"] * 2)


def test_an_index_that_was_made_and_whose_answer_was_lost_is_taken(run: Run, control: ControlServer) -> None:
    control.losing.add("POST /indexes")
    code, out, _ = run("apply", "vectors", "--yes", "--json")
    assert (code, statuses(out)["pinecone.index"]) == (0, "pass")
    assert (list(control.indexes), changes(control)) == ([NAME], ["POST /indexes"] * 2)


def test_a_key_that_is_refused_and_a_region_that_is_not_there(
    run: Run, control: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTOR_DB_REGION", "nowhere-9")
    code, _, err = run("apply", "vectors", "--yes")
    assert code == 2
    assert "VECTOR_DB_REGION" in err
    control.keys = {"another"}
    code, _, err = run("plan", "vectors")
    assert code == 3
    assert "check VECTOR_DB_API_KEY" in err
    monkeypatch.delenv("VECTOR_DB_API_KEY")
    assert run("plan", "vectors")[0] == 2
    assert control.indexes == {}


async def test_an_index_that_never_gets_ready(run: Run, control: ControlServer) -> None:
    control.looks_until_ready = 10**6
    settings = config.load()
    with pytest.raises(VectorStoreUnavailable, match="has not made"):
        await vectors_pinecone.examine(Survey(make=True), settings, print, ready_within=0.3)
    assert list(control.indexes) == [NAME]
    control.looks_until_ready, control.fails_to_start = 0, True
    outcome = Survey(make=True)
    await vectors_pinecone.examine(outcome, settings, print, ready_within=5)  # goes on waiting
    (state,) = [one for one in outcome.findings if one.id == "vectors.pinecone.state"]
    assert (state.status, "InitializationFailed" in state.finding, outcome.made) == ("fail", True, [])


def test_what_was_made_is_written_down(
    run: Run, control: ControlServer, database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database("memory_app"))
    assert run("plan", "vectors")[0] == 1
    assert run("apply", "vectors", "--yes")[0] == 0
    kept = rows(database("postgres"), "SELECT verb, exit_code, report, arguments FROM ops_runs ORDER BY started_at")
    assert [row[:2] for row in kept] == [("provision-apply-vectors", 0)]  # a plan only reads
    assert NAME in kept[0][2]["facts"]["made"][0]
    assert KEY not in json.dumps(kept[0][2:])


# --- sizing


@pytest.mark.parametrize("provider", ["pgvector", "milvus", "pinecone"])
def test_sizing_is_for_twice_the_searches_and_tells_its_assumptions(provider: str) -> None:
    one, many = (
        sizing.size(config.load({"VECTOR_PROJECTED_QPS": str(qps), "EMBEDDINGS_DIMENSIONS": "1536"}), provider)
        for qps in (50, 5000)
    )
    assert (one.evidence["sizedForQps"], many.evidence["sizedForQps"]) == (100, 10_000)
    assert all(assumed in one.finding for assumed in one.evidence["assumed"])
    assert one.evidence["needs"] != many.evidence["needs"]
    assert sizing.size(config.load({}), provider).status == "skip"


def test_the_plan_prints_the_sizing(run: Run, control: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTOR_PROJECTED_QPS", "3000")
    control.add(NAME)
    told = finding(run("plan", "vectors", "--json")[1], "sizing")
    assert told["evidence"]["needs"]["readUnitsASecond"]["smallNamespaces"] == 1500  # 6,000 at a quarter of a unit
    assert "unless Pinecone raises its limit" in told["finding"]
