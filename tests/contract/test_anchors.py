"""What every place that keeps checkpoints does, and what each kind of them does besides."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memory_layer import config
from memory_layer.errors import AnchorUnavailable, Conflict, DependencyUnavailable, UsageError
from memory_layer.stores.anchors import open_anchor, open_anchors
from memory_layer.stores.protocols import AnchorPlace
from tests.support.anchor_server import AnchorServer, running_anchor_server
from tests.support.s3_server import S3Server

ORIGIN = "memory-1/audit/dev/s0/e1"
KINDS = ["folder", "bucket", "bucket-without-locks", "web", "git", "git-bare", "git-remote"]


@pytest.fixture
def web() -> Iterator[AnchorServer]:
    with running_anchor_server() as server:
        yield server


def git(*words: str, where: Path | None = None) -> str:
    at = [] if where is None else ["-C", str(where)]
    done = subprocess.run(["git", *at, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(params=KINDS)
def destination(
    request: pytest.FixtureRequest, tmp_path: Path, moto_s3: S3Server, web: AnchorServer
) -> tuple[Any, str]:
    """Settings and an address."""
    kind, place = request.param, tmp_path / "place"
    settings = config.load({})
    if kind == "folder":
        place.mkdir()
        return settings, str(place)
    if kind.startswith("bucket"):
        bucket = moto_s3.make_bucket(locks=kind == "bucket")
        if kind != "bucket":
            versioned = {"Status": "Enabled"}
            moto_s3.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration=versioned)
        return moto_s3.settings(bucket), f"s3://{bucket}/kept/here"
    if kind == "web":
        return settings, web.url
    git("init", "-q", "-b", "main", *(["--bare"] if kind != "git" else []), str(place))
    return settings, f"git+file://{place}" if kind == "git-remote" else f"git:{place}"


@pytest.fixture
def place(destination: tuple[Any, str], tmp_path: Path) -> AnchorPlace:
    return open_anchor(*destination[:1], tmp_path / "data", destination[1])


def note(size: int, root: str = "AAAA") -> bytes:
    return f"{ORIGIN}\n{size}\n{root}\n\n\u2014 x y\n".encode()


async def test_the_newest_is_that_of_the_largest_size(place: AnchorPlace) -> None:
    assert await place.newest(ORIGIN) is None
    for size in (1, 2, 900, 1000, 10_000):
        await place.keep(ORIGIN, size, note(size))
        assert await place.newest(ORIGIN) == note(size)
    await place.close()


async def test_what_is_kept_is_never_overwritten(place: AnchorPlace) -> None:
    await place.keep(ORIGIN, 7, note(7))
    await place.keep(ORIGIN, 7, note(7))  # again: a run that was cut off
    with pytest.raises(Conflict):
        await place.keep(ORIGIN, 7, note(7, "BBBB"))
    assert await place.newest(ORIGIN) == note(7)
    await place.close()


async def test_logs_are_kept_apart(place: AnchorPlace, destination: tuple[Any, str]) -> None:
    if destination[1].startswith("http"):
        pytest.skip("an endpoint is for one log, or knows them apart by X-Log-Origin")
    await place.keep(ORIGIN, 7, note(7))
    assert await place.newest(ORIGIN.replace("/e1", "/e2")) is None
    await place.close()


# --- each kind


async def test_a_bucket_locks_what_it_can(moto_s3: S3Server, tmp_path: Path) -> None:
    bucket = moto_s3.make_bucket()
    place = open_anchor(moto_s3.settings(bucket, archive_lock_days=3), tmp_path, f"s3://{bucket}/kept")
    await place.keep(ORIGIN, 7, note(7))
    assert moto_s3.client().head_object(Bucket=bucket, Key=f"kept/{ORIGIN}/{7:015d}")["ObjectLockMode"] == "COMPLIANCE"
    # A delete marker or another version over it hides nothing.
    moto_s3.client().delete_object(Bucket=bucket, Key=f"kept/{ORIGIN}/{7:015d}")
    assert await place.newest(ORIGIN) == note(7)
    await place.close()


async def test_an_endpoint_is_tried_again_and_never_believed(web: AnchorServer, tmp_path: Path) -> None:
    address = web.url.replace("http://", "http://ann:s%3Acret@")
    place = open_anchor(config.load({}), tmp_path, address)
    assert "cret" not in place.name
    web.faults = [503, 500]
    await place.keep(ORIGIN, 7, note(7))
    assert set(web.authorization) == {"Basic YW5uOnM6Y3JldA=="}
    web.faults = [503] * 3
    with pytest.raises(AnchorUnavailable, match="503") as refused:
        await place.keep(ORIGIN, 8, note(8))
    assert "cret" not in refused.value.message
    for status in (302, 401):
        web.faults = [status]
        with pytest.raises(AnchorUnavailable, match=str(status)):
            await place.keep(ORIGIN, 8, note(8))
    web.flood = True
    with pytest.raises(AnchorUnavailable, match="more than a checkpoint"):
        await place.newest(ORIGIN)
    web.flood, web.reads = False, False
    assert await place.newest(ORIGIN) is None
    await place.close()
    gone = open_anchor(config.load({}), tmp_path, "http://127.0.0.1:9/x")
    with pytest.raises(AnchorUnavailable, match="cannot be reached"):
        await gone.newest(ORIGIN)
    await gone.close()


async def test_git_commits_beside_what_is_there_and_runs_nothing_of_the_repository(tmp_path: Path) -> None:
    place, ran = tmp_path / "place", tmp_path / "ran"
    git("init", "-q", "-b", "main", str(place))
    (place / "README").write_text("anchors")
    git("add", ".", where=place)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first", where=place)
    script = f"#!/bin/sh\necho $0 >> {ran}\n"
    for hook in ("pre-commit", "post-commit", "reference-transaction", "post-index-change", "pre-push", "update", "pre-receive",
                 "fsmonitor", "filter"):  # fmt: skip
        path = place / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
    git("config", "core.fsmonitor", str(place / ".git" / "hooks" / "fsmonitor"), where=place)
    git("config", "filter.x.clean", str(place / ".git" / "hooks" / "filter"), where=place)
    (place / ".git" / "info").mkdir(exist_ok=True)
    (place / ".git" / "info" / "attributes").write_text("* filter=x\n")
    for address in (f"git:{place}", f"git+file://{place}"):
        opened = open_anchor(config.load({}), tmp_path, address)
        size = 7 if address.startswith("git:") else 8
        if size == 8:
            git("config", "receive.denyCurrentBranch", "ignore", where=place)
        await opened.keep(ORIGIN, size, note(size))
        assert await opened.newest(ORIGIN) == note(size)
        assert not ran.exists(), (address, ran.read_text())
    assert not ran.exists(), ran.read_text()
    quiet = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "filter.x.clean=cat"]
    assert git(*quiet, "log", "--format=%s|%an", where=place).splitlines()[:2] == [
        f"Checkpoint of {ORIGIN}: 8 entries|Memory Layer", f"Checkpoint of {ORIGIN}: 7 entries|Memory Layer"
    ]  # fmt: skip
    assert git("show", "HEAD:README", where=place) == "anchors"
    assert (place / ORIGIN / f"{7:015d}").read_bytes() == note(7)


async def test_two_pushers_to_one_repository(tmp_path: Path) -> None:
    place = tmp_path / "place"
    git("init", "-q", "--bare", "-b", "main", str(place))
    first, second = (open_anchor(config.load({}), tmp_path, f"git+file://{place}") for _ in range(2))
    await first.keep(ORIGIN, 1, note(1))
    assert await second.newest(ORIGIN) == note(1)
    await second.keep(ORIGIN, 2, note(2))
    assert await first.newest(ORIGIN) == note(2)
    assert git("rev-list", "--count", "HEAD", where=place) == "2"


async def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (str(tmp_path / "none"), f"git:{tmp_path}/none", f"git+file://{tmp_path}/none"):
        with pytest.raises(AnchorUnavailable):
            await open_anchor(config.load({}), tmp_path, address).newest(ORIGIN)
    assert not (tmp_path / "none").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyUnavailable, match="git is not installed"):
        await open_anchor(config.load({}), tmp_path, f"git:{tmp_path}").newest(ORIGIN)


@pytest.mark.parametrize(
    "wrong", ["anchors", "ftp://host/x", "s3://", "https://", "git:relative", "git+ssh://", "http://example.com/x", "file://host/x",
              "git+ext::sh", "https://user:secret@[::1"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UsageError) as refused:
        open_anchor(config.load({}), tmp_path, wrong)
    assert "AUDIT_ANCHORS" in refused.value.message
    assert "secret" not in refused.value.message


def test_the_setting_names_several(tmp_path: Path) -> None:
    settings = config.load({"AUDIT_ANCHORS": f"{tmp_path}, https://example.com/a  {tmp_path}"})
    assert [place.name for place in open_anchors(settings, tmp_path)] == [str(tmp_path), "https://example.com/a"]
    assert open_anchors(config.load({}), tmp_path) == ()
