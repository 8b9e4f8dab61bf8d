"""The product as a user starts it, and databases for tests that look beneath it."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import botocore.loaders
import botocore.session
import hypothesis
import pytest

from memory_layer.audit.verdict import TAMPERED
from memory_layer.ops import embedded
from tests.support.databases import new_database
from tests.support.folders import make_data_folder
from tests.support.initialised import make_initialised_folder
from tests.support.key_services import set_aws_environment
from tests.support.kms_server import KmsServer, running_kms
from tests.support.product import Product, running_product
from tests.support.s3_server import S3Server, ceph_missing, running_ceph, running_moto
from tests.support.service import verify
from tests.support.vault_server import VaultServer, running_vault

pytest_plugins = ["tests.support.failures", "tests.support.order"]

# A shell's background job, and whatever else runs the suite, may ignore Ctrl-C, and each process started here would inherit that:
# the tests send it to some, which would go on for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: these machines are shared, and a slow example is no finding. A developer's run looks for new examples each time,
# a build of continuous integration repeats the same ones, so that what it judges is the change.
hypothesis.settings.register_profile("here", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("here")


# Each session of boto3 reads and parses the same megabyte of JSON, 50 ms of CPU, and the tests open a thousand.
botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What is collected stays until the end. Python need not look through it for garbage, neither meanwhile nor ever after."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """A new data folder path; its parent can be passed through by the database's account."""
    folder = make_data_folder()
    yield folder
    shutil.rmtree(folder.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def product() -> Iterator[Product]:
    """One running product per test process. Tests keep apart by tenants of their own (``product.issue(tenant=...)``)."""
    with running_product() as running:
        yield running
        # What one test leaves in the log is found by the next that verifies it, which then fails in its place.
        judged = verify(running.database.replace("memory_app@", "postgres@"), running.data)
        assert [finding for finding in judged.findings if finding.exit_code == TAMPERED] == []


@pytest.fixture
def tenant() -> str:
    """A tenant that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def cluster() -> Iterator[embedded.Cluster]:
    """A Postgres without durability, with a migrated template database ``memory``."""
    folder = make_initialised_folder()
    with embedded.start(folder, durable=False) as running:
        yield running
    shutil.rmtree(folder.parent, ignore_errors=True)


@pytest.fixture
def database(cluster: embedded.Cluster) -> Iterator[Callable[[str], str]]:
    """A migrated database of this test's own: call it with a role for its DSN."""
    with new_database(cluster) as made:
        yield made


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials for the stand-in for KMS, and none from elsewhere."""
    set_aws_environment(monkeypatch, tmp_path / "none")


@pytest.fixture
def kms(aws: None) -> Iterator[KmsServer]:
    """An empty KMS."""
    with running_kms() as server:
        yield server


@pytest.fixture
def vault() -> Iterator[VaultServer]:
    """A Vault without mounts."""
    with running_vault() as server:
        yield server


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[S3Server]:
    """S3 as moto plays it; tests keep apart by buckets of their own."""
    with running_moto() as server:
        yield server


@pytest.fixture(scope="session")
def ceph_s3() -> Iterator[S3Server]:
    """A real S3 server; for tests that are marked real."""
    if (reason := ceph_missing()) is not None:
        pytest.skip(reason)
    with running_ceph() as server:
        yield server
