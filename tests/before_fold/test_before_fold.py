"""An installation from before the migrations were folded (README.md): this version starts on it and goes on."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import httpx2
import psycopg
import pytest

from memory_layer.ops import embedded, migrate
from memory_layer.sql import folded, migrations
from tests.support.product import Product, run_ctl, running_product

INSTALLATION = Path(__file__).with_name("installation.tar.gz")
CONSISTENT_UNANCHORED = 10
REFUSED = 4
pytestmark = pytest.mark.slow


@pytest.fixture
def data(data_folder: Path) -> Path:
    """The data folder, its database restored from the dump."""
    with tarfile.open(INSTALLATION) as tar:
        tar.extractall(data_folder.parent, filter="tar")  # which keeps the modes of folders
    dump = data_folder / "database.sql"
    with embedded.start(data_folder) as cluster:
        embedded.prepare_database(cluster)
        subprocess.run(
            [cluster.binaries / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", cluster.dsn("postgres"), "-f", "-"],
            input=dump.read_bytes(),
            capture_output=True,
            check=True,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            cwd="/",
            **cluster.account.popen_arguments(),
        )
        folds = [step.version for step in migrate.plan(cluster.dsn("memory_owner")) if step.status == "folded"]
        assert folds[-1] == migrate.LAST_FOLDED
    dump.unlink()
    return data_folder


def client(product: Product, tenant: str) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    return httpx2.Client(base_url=product.url, headers=headers, timeout=30)


def verify(data: Path) -> None:
    done = run_ctl("audit", "verify", "--data", str(data))
    assert done.returncode == CONSISTENT_UNANCHORED, done.stdout + done.stderr


def test_it_starts_and_reads_writes_and_verifies(data: Path) -> None:
    with running_product(data=data) as product:
        with product.owner() as owner:
            recorded = owner.execute("SELECT version, checksum FROM schema_migrations ORDER BY version").fetchall()
        assert recorded == [(migration.version, migration.checksum) for migration in migrations()]
        same = run_ctl("migrate", "drift", "--data", str(data))
        assert (same.returncode, same.stdout) == (0, ""), same.stdout
        verify(data)
        with client(product, "ann") as ann, client(product, "bob") as bob:
            held, key = ann.get("/v1/memory/nodes").json()["items"]
            assert key["content"] == "The key to the north gate hangs behind the oven."
            found = ann.post("/v1/memory/search", json={"query": "where is the key", "topK": 1}).json()["results"]
            assert [hit["memoryNodeId"] for hit in found] == [key["memoryNodeId"]]
            (file,) = ann.get(f"/v1/memory/nodes/{held['memoryNodeId']}").json()["artifacts"]
            assert ann.get(f"/v1/memory/artifacts/{file['artifactId']}/content").content == b"May: 120\n"
            assert ann.delete(f"/v1/memory/nodes/{held['memoryNodeId']}").json()["error"]["code"] == "LEGAL_HOLD"

            patched = ann.patch(f"/v1/memory/nodes/{key['memoryNodeId']}", json={"content": "The key is lost."})
            assert patched.status_code == 200, patched.text
            history = ann.get(f"/v1/memory/nodes/{key['memoryNodeId']}/history").json()["items"]
            assert len(history) == 3
            new = {"owner": "bob", "content": "Bob's bicycle is stolen."}
            assert bob.post("/v1/memory/nodes?wait=indexed", json=new).json()["indexed"]
        verify(data)


def test_a_part_of_its_migrations_is_refused(data: Path) -> None:
    with embedded.start(data) as cluster, psycopg.connect(cluster.dsn("postgres"), autocommit=True) as root:
        root.execute("DELETE FROM schema_migrations WHERE version = %s", [list(folded())[-1]])
    done = run_ctl("up", "--data", str(data), "--port", "0")
    assert done.returncode == REFUSED, done.stderr
    assert f"{list(folded())[-1]} are missing" in done.stderr
    assert f"commit {migrate.BEFORE_FOLD}" in done.stderr
