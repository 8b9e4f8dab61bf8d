"""Large bodies take little memory: each goes in and out in a process of its own, whose peak the system tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memory_layer.config import Settings
from tests.support.object_stores import MEGABYTE, Place

LIMIT = 200 * MEGABYTE
CASES = [
    pytest.param("files", 300, id="directory-300MB"),
    pytest.param("moto", 100, id="moto-100MB-in-parts"),
    pytest.param("ceph", 300, id="ceph-300MB", marks=pytest.mark.real),
    pytest.param("ceph", 2048, id="ceph-2GB", marks=[pytest.mark.real, pytest.mark.slow]),
    pytest.param("moto announced", 100, id="moto-100MB-announced"),
    pytest.param("ceph announced", 2048, id="ceph-2GB-announced", marks=[pytest.mark.real, pytest.mark.slow]),
    pytest.param("files", 5120, id="directory-5GB", marks=[pytest.mark.torture, pytest.mark.slow]),
]


def environment(settings: Settings) -> dict[str, str]:
    """The settings as variables, beside the process's own."""
    named = {
        field.encode_name: str(getattr(settings, field.name))
        for field in msgspec.structs.fields(Settings)
        if field.name.startswith(("s3_", "archive_")) and getattr(settings, field.name) is not None
    }
    return dict(os.environ) | named


def transfer(place: Place, megabytes: int, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.transfer", str(megabytes), str(place.folder), *more],
        env=environment(place.settings),
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("kind", "megabytes"), CASES)
def test_a_large_body_takes_little_memory(
    request: pytest.FixtureRequest, kind: str, megabytes: int, tmp_path: Path
) -> None:
    kind, *more = kind.split()
    server = None if kind == "files" else request.getfixturevalue(f"{kind}_s3")
    place = Place(tmp_path, server, None if server is None else server.make_bucket())
    found = transfer(place, megabytes, *more)
    print(
        f"{megabytes} MB: peak {found['rss'] / 1e6:.0f} MB (before: {found['rss_before'] / 1e6:.0f} MB), up {found['up']:.1f} s, "
        f"down {found['down']:.1f} s"
    )
    assert found["size"] == megabytes * MEGABYTE
    assert found["right"]
    assert found["rss"] < LIMIT
