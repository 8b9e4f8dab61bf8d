"""`memoryctl rotate signing-key` as an operator types it: under load, killed, while nothing runs, and refused."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

from memory_layer import config
from memory_layer.audit import trust_root
from memory_layer.ops.operate import Run
from memory_layer.ops.rotate import LOCK
from memory_layer.service.installation import Installation
from tests.support.product import Product, clean_environment, run_ctl, running_product
from tests.support.runs import installed, perform

CONSISTENT_UNANCHORED, POLICY = 10, 50
CLIENTS = 4
KILLS = 20
WORDS = ["rotate", "signing-key", "--yes", "--data"]
pytestmark = pytest.mark.slow


@pytest.fixture
def own() -> Iterator[Product]:
    """A product of this test's own, since its keys change."""
    with running_product() as running:
        yield running


def rotate(data: Path, *words: str) -> dict[str, Any]:
    """The facts of a rotation that succeeds."""
    done = run_ctl(*WORDS, str(data), "--json", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)["facts"]
    return facts


def verify(data: Path, *words: str) -> dict[str, Any]:
    done = run_ctl("audit", "verify", "--data", str(data), "--json", *words)
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


class Load:
    """Clients that write until told to stop; ``answers`` are the statuses, ``nodes`` what was acknowledged."""

    def __init__(self, product: Product) -> None:
        self.answers: list[int] = []
        self.nodes: list[str] = []
        self._stop = threading.Event()
        self._product = product
        self._threads = [threading.Thread(target=self._write) for _ in range(CLIENTS)]

    def _write(self) -> None:
        headers = {"Authorization": f"Bearer {self._product.token}"}
        with httpx2.Client(base_url=self._product.url, headers=headers, timeout=60) as http:
            while not self._stop.is_set():
                answer = http.post("/v1/memory/nodes", json={"owner": "ann", "content": "kept"})
                self.answers.append(answer.status_code)
                if answer.status_code == 201:
                    self.nodes.append(answer.json()["memoryNodeId"])

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def once_each(product: Product, nodes: list[str]) -> None:
    """Every acknowledged write is there once, with one entry, and nothing else is."""
    with product.owner() as server:
        stored = [str(row[0]) for row in server.execute("SELECT id FROM memory_nodes").fetchall()]
        told = server.execute(
            "SELECT memory_node_id FROM audit_events WHERE event_type = 'memory.node.created'"
        ).fetchall()
    assert sorted(stored) == sorted(nodes) == sorted(str(row[0]) for row in told)


def keys_told(product: Product) -> list[str]:
    with product.owner() as server:
        found = server.execute(
            "SELECT event_type FROM audit_events WHERE event_type LIKE 'audit.key.%' ORDER BY seq"
        ).fetchall()
    return [str(row[0]) for row in found]


def test_three_rotations_under_load(own: Product, tmp_path: Path) -> None:
    pinned = tmp_path / "pinned.json"
    shutil.copy(own.data / "trust-root.json", pinned)
    with Load(own) as load:
        facts = [rotate(own.data) for _ in range(3)]
    assert set(load.answers) == {201}, {code: load.answers.count(code) for code in load.answers}
    once_each(own, load.nodes)
    assert [made["version"] for made in facts] == [3, 5, 7]
    assert trust_root.load((own.data / "trust-root.json").read_bytes()).digest == facts[-1]["sha256"]
    verdict = verify(own.data)
    assert (verdict["exit"], verdict["findings"]) == (CONSISTENT_UNANCHORED, [])
    with own.owner() as server:
        ((keys,),) = server.execute("SELECT count(DISTINCT key_id) FROM audit_seals").fetchall()
    assert keys == 4

    old = verify(own.data, "--trust-root", str(pinned))
    assert old["exit"] == POLICY
    assert {finding["code"] for finding in old["findings"]} == {"KEY_UNKNOWN"}


def test_killed_wherever_it_stands_the_next_run_finishes(own: Product) -> None:
    killed = 0
    with Load(own) as load:
        for _ in range(KILLS):
            words = [sys.executable, "-m", "memory_layer.cli", *WORDS, str(own.data)]
            with subprocess.Popen(
                words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=clean_environment()
            ) as run:
                assert run.stderr is not None
                for _ in range(random.randrange(7)):  # it says a line after each of its steps
                    run.stderr.readline()
                threading.Event().wait(random.random() * 0.01)  # somewhere within the next one
                run.kill()
            killed += run.returncode != 0
        rotate(own.data)
    assert killed > KILLS // 2
    assert set(load.answers) == {201}, {code: load.answers.count(code) for code in load.answers}
    once_each(own, load.nodes)
    told = keys_told(own)
    assert told == ["audit.key.activated", "audit.key.retired"] * (len(told) // 2)
    assert len(list((own.data / "keys").glob("seal*.pem"))) == 1
    root = trust_root.load((own.data / "trust-root.json").read_bytes())
    ranges = [(key.from_seq, key.to_seq) for key in root.keys if key.purpose == "seal"]
    assert len(ranges) == len(told) // 2 + 1
    for (_, last), (first, _) in itertools.pairwise(ranges):
        assert last is not None
        assert last + 1 == first
    verdict = verify(own.data)
    assert (verdict["exit"], verdict["findings"]) == (CONSISTENT_UNANCHORED, [])


def test_while_nothing_runs_and_at_the_next_start(data_folder: Path) -> None:
    with running_product(data=data_folder):
        pass
    said = run_ctl("rotate", "signing-key", "--plan", "--data", str(data_folder), "--json")
    assert said.returncode == 0, said.stderr
    plan = json.loads(said.stdout)
    assert (plan["newKey"], plan["finishes"], len(plan["steps"])) == ("one that is made", False, 6)
    assert not (data_folder / "trust-root.v1.json").exists()
    facts = rotate(data_folder)
    with running_product(data=data_folder) as again:
        with Load(again) as load:
            rotate(data_folder)
        assert set(load.answers) == {201}
        assert verify(data_folder)["exit"] == CONSISTENT_UNANCHORED
        runs = json.loads(again.ctl("runs", "list", "--data", str(data_folder), "--json").stdout)
        assert [run["verdict"] for run in runs if run["verb"] == "rotate-signing-key"] == ["ok", "ok"]
        assert facts["sha256"] == trust_root.load((data_folder / "trust-root.v3.json").read_bytes()).digest


@pytest.fixture
def place(product: Product) -> Installation:
    return installed(config.load({}), product.data, product.database)


def test_a_second_one_at_once_is_refused_with_the_reason(product: Product, place: Installation) -> None:
    before = (product.data / "trust-root.json").read_bytes()

    def inside(run: Run) -> None:
        done = run_ctl(*WORDS, str(product.data))
        assert done.returncode == 5, done.stderr
        assert LOCK in done.stderr
        assert "Traceback" not in done.stderr

    perform(place, "rotate-signing-key", {}, inside, lock=LOCK)
    assert (product.data / "trust-root.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda folder: None, 4, "this machine has not got it"),
        (lambda folder: (folder / "trust-root.json").unlink(), 2, "trust-root.json cannot be read"),
    ],
    ids=["no key", "no trust root"],
)
def test_from_a_machine_without_the_key(
    product: Product, tmp_path: Path, change: Callable[[Path], None], code: int, says: str
) -> None:
    shutil.copy(product.data / "trust-root.json", tmp_path)
    change(tmp_path)
    environment = clean_environment() | {"DATABASE_URL": product.database}
    done = run_ctl(*WORDS, str(tmp_path), env=environment)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_words_that_contradict_each_other(tmp_path: Path) -> None:
    done = run_ctl("rotate", "signing-key", "--plan", "--yes", "--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
