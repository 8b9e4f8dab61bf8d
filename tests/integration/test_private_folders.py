"""Folders and files that hold somebody's memory, or a key to it, are their owner's alone: as they are made, and as they are found."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memory_layer.audit import trust_root
from memory_layer.ops import export, first_start
from memory_layer.ops.data_folder import Account, open_log
from memory_layer.ops.manifests import manifest_key
from memory_layer.private import make_folder, tighten
from memory_layer.stores.objects import open_archive, open_objects
from memory_layer.stores.objects.files import open_file_store
from tests.support.artifacts import upload
from tests.support.object_stores import chunks
from tests.support.s3_server import S3Server
from tests.support.service import create, running_memory

Database = Callable[[str], str]


@pytest.fixture(autouse=True, params=[0o000, 0o022, 0o777], ids=["umask 000", "umask 022", "umask 777"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def assert_private(folder: Path) -> None:
    found = [folder, *folder.rglob("*")]
    assert len(found) > 1
    assert {str(path): oct(mode(path)) for path in found if mode(path) & 0o077} == {}


async def test_the_stores_in_folders(tmp_path: Path) -> None:
    for name in ("objects", "archive"):
        store = open_file_store(tmp_path / "data" / name)
        await store.put("acme/artifacts", chunks(b"data"), hold=True)
        await store.put_named("archive/a/manifest.json", chunks(b"data"))
        await store.close()
        assert_private(tmp_path / "data" / name)


async def test_folders_that_are_there_are_tightened_at_start_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "objects"
    store = open_file_store(root)
    await store.put("acme", chunks(b"data"))
    await store.close()
    for folder in (root, root / "acme", root / ".incoming"):
        folder.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        await open_file_store(root).close()
    assert [mode(folder) for folder in (root, root / "acme", root / ".incoming")] == [0o700] * 3
    assert len([record for record in caplog.records if "others could read the folder" in record.getMessage()]) == 3
    caplog.clear()
    await open_file_store(root).close()
    assert caplog.records == []


async def test_the_spool_of_uploads_to_s3(tmp_path: Path, moto_s3: S3Server) -> None:
    settings = moto_s3.settings(moto_s3.make_bucket())
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o755)
    for opened in (open_objects(settings, tmp_path), open_archive(settings, tmp_path)):
        await opened.close()
    assert mode(tmp_path / "spool") == 0o700


def test_keys(tmp_path: Path) -> None:
    keys = tmp_path / "data" / "keys"
    first_start.ensure_keys(tmp_path / "data")
    assert_private(keys)
    keys.chmod(0o755)
    first_start.ensure_keys(tmp_path / "data")
    assert mode(keys) == 0o700


async def test_a_bundle_and_what_it_came_from(database: Database, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "evidence"
    make_folder(data)
    async with running_memory(database("memory_app"), data) as memory:
        await create(memory)
        await upload(memory, b"a file")
    content = (data / "trust-root.json").read_bytes()
    root = trust_root.load(content)
    key = manifest_key(data, root)
    await asyncio.to_thread(export.export, database("memory_app"), root, content, out, key=key)
    assert_private(out)
    assert_private(data / "objects")


def test_the_database_s_log(tmp_path: Path) -> None:
    data, account = tmp_path / "data", Account("its owner", os.geteuid(), os.getegid(), switch=False)
    make_folder(data)
    (data / "log").mkdir()
    (data / "log").chmod(0o755)
    open_log(data, account).close()
    assert mode(data / "log") == 0o700


def test_a_link_is_not_followed_and_nothing_is_reported_of_what_is_no_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o755)
    (tmp_path / "link").symlink_to(elsewhere)
    assert not tighten(tmp_path / "link")
    assert mode(elsewhere) == 0o755
    assert not tighten(tmp_path / "nothing")
    shutil.rmtree(elsewhere)
