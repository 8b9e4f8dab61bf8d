"""`memoryctl up` with artifacts and archive in S3 and the key that seals in KMS, by commands alone, on moto and the stand-in for KMS."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from memory_layer.model import SCOPES
from tests.support.folders import make_data_folder
from tests.support.key_services import assert_no_secrets
from tests.support.kms_server import ENVIRONMENT, KmsServer, running_kms
from tests.support.product import Product, clean_environment, run_ctl, start_product
from tests.support.s3_server import REGION, S3Server

pytestmark = pytest.mark.slow
S3_SECRET = "s3/secret+that+must+never+be+shown"
BUCKET, ARCHIVE = "up-memory-dev", "up-audit-archive-dev"


@pytest.fixture(scope="module")
def kms() -> Iterator[KmsServer]:
    with running_kms() as server:
        yield server


@pytest.fixture(scope="module")
def settings(moto_s3: S3Server, kms: KmsServer) -> dict[str, str]:
    return ENVIRONMENT | {
        "BUCKET_PREFIX": "up",
        "S3_ENDPOINT": moto_s3.endpoint,
        "S3_REGION": REGION,
        "S3_ACCESS_KEY": "writer",
        "S3_SECRET": S3_SECRET,
        "S3_ERASER_ACCESS_KEY": "eraser",
        "S3_ERASER_SECRET": S3_SECRET,
        "KMS_ENDPOINT": kms.url,
        "AUDIT_SIGNER": "kms",
    }


@pytest.fixture(scope="module")
def installation(settings: dict[str, str], moto_s3: S3Server) -> Iterator[Product]:
    """Provisioned and started by commands; stopped at the end, with what it said searched for secrets."""
    folder = make_data_folder()
    for words in (("keys",), ("buckets", "--no-probe")):
        made = run_ctl("provision", "apply", *words, "--yes", "--data", str(folder), env=clean_environment() | settings)
        assert made.returncode == 0, made.stdout + made.stderr
    for bucket in (BUCKET, ARCHIVE):
        moto_s3.client().delete_bucket_policy(Bucket=bucket)  # moto looks at no condition of a denial
    product = start_product(folder, "--processes", "2", environment=settings)
    yield product
    assert product.stop() == 0
    for log in [folder.with_name(folder.name + ".out"), *(folder / "log").iterdir()]:
        text = log.read_text("utf-8", "replace")
        assert_no_secrets(text)
        assert S3_SECRET not in text
        assert "Traceback" not in text, text


Ctl = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def ctl(installation: Product, settings: dict[str, str]) -> Ctl:
    """memoryctl with the settings of the service, as an operator has them: exit code, JSON, talk."""
    environment = clean_environment() | settings
    environment |= {
        "MEMORY_URL": installation.url,
        "MEMORY_TOKEN": installation.token,
        "MEMORY_DATA": str(installation.data),
    }

    def call(*words: str, **more: str) -> tuple[int, Any, str]:
        done = run_ctl(*words, "--json", env=environment | more)
        assert_no_secrets(done.stdout + done.stderr)
        assert S3_SECRET not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr

    return call


def test_artifacts_lie_in_the_bucket_and_follow_their_node(
    installation: Product, ctl: Ctl, moto_s3: S3Server, tmp_path: Path
) -> None:
    file = tmp_path / "report.txt"
    file.write_text("bytes in S3")
    node = ctl("node", "create", "with a file")[1]["memoryNodeId"]
    code, stored, _ = ctl("artifacts", "put", str(file), "--node", node)
    assert code == 0
    assert stored["url"] == f"s3://{BUCKET}/default/{stored['sha256']}"
    where = {"Bucket": BUCKET, "Key": f"default/{stored['sha256']}", "VersionId": stored["versionId"]}
    s3 = moto_s3.client()
    assert s3.get_object(**where)["Body"].read() == b"bytes in S3"

    assert ctl("artifacts", "get", stored["artifactId"], "--output", str(tmp_path / "back.txt"))[0] == 0
    assert (tmp_path / "back.txt").read_text() == "bytes in S3"
    headers = {"Authorization": f"Bearer {installation.issue(scopes=SCOPES)}"}
    link = httpx2.get(
        f"{installation.url}/v1/memory/artifacts/{stored['artifactId']}/content?link=true", headers=headers
    )
    assert link.status_code == 302
    assert httpx2.get(link.headers["location"]).text == "bytes in S3"

    assert ctl("node", "hold", node, "--reason", "case 7")[0] == 0
    until(lambda: s3.get_object_legal_hold(**where)["LegalHold"].get("Status") == "ON", "the hold in S3")
    assert ctl("node", "delete", node, "--yes")[0] == 4
    assert ctl("node", "release", node, "--reason", "closed")[0] == 0
    until(lambda: s3.get_object_legal_hold(**where)["LegalHold"].get("Status") == "OFF", "the release in S3")

    registered = s3.put_object(Bucket=BUCKET, Key="default/models/a.bin", Body=b"model")
    sha = "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"
    url = f"s3://{BUCKET}/default/models/a.bin"
    code, found, _ = ctl("artifacts", "register", url, "--sha256", sha, "--size", "5")
    assert (code, found["versionId"]) == (0, registered["VersionId"])
    assert "CHECKSUM_MISMATCH" in ctl("artifacts", "register", url, "--sha256", "0" * 64, "--size", "5")[2]
    assert ctl("artifacts", "scan")[1]["verdict"] == "ok"


def test_the_archive_proves_the_log(ctl: Ctl, moto_s3: S3Server) -> None:
    code, done, _ = ctl("audit", "archive")
    assert (code, done["verdict"]) == (0, "ok"), done
    manifest = done["facts"]["segments"][0]
    head = moto_s3.client().head_object(Bucket=ARCHIVE, Key=manifest["key"], VersionId=manifest["version"])
    assert head["ObjectLockMode"] == "COMPLIANCE"
    assert ctl("audit", "verify", "--from-s3")[0] == 10
    code, told, _ = ctl("audit", "replay", "--from-s3", "--dry-run")
    assert (code, told["exit"], told["verdict"]) == (0, 0, "CONSISTENT_UNANCHORED")
    for step in ("start", "status", "finish"):
        code, told, err = ctl("drill", "audit-restore", step)
        assert code == 0, err
        assert told.get("startedAt", "Z").endswith("Z")
    assert told["verdict"] == "ok"
    assert ctl("artifacts", "manifest", "export")[0] == 0
    assert ctl("artifacts", "manifest", "verify")[0] == 0


def test_started_again_it_finds_everything(
    installation: Product, ctl: Ctl, settings: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "kept.txt"
    file.write_text("kept")
    kept = ctl("artifacts", "put", str(file))[1]["artifactId"]
    assert installation.stop() == 0
    again = start_product(installation.data, "--processes", "2", environment=settings)
    installation.process, installation.url, installation.token = again.process, again.url, again.token
    where = {"MEMORY_URL": again.url, "MEMORY_TOKEN": again.token}
    code, _, _ = ctl("artifacts", "get", kept, "--output", str(tmp_path / "back"), **where)
    assert (code, (tmp_path / "back").read_text()) == (0, "kept")
    assert ctl("audit", "verify")[0] == 10


def test_without_its_bucket_nodes_go_on(installation: Product, ctl: Ctl, moto_s3: S3Server, tmp_path: Path) -> None:
    """Last of all: the bucket is emptied."""
    s3 = moto_s3.client()
    for version in s3.list_object_versions(Bucket=BUCKET).get("Versions", ()):
        about = {"Bucket": BUCKET, "Key": version["Key"], "VersionId": version["VersionId"]}
        s3.delete_object(**about, BypassGovernanceRetention=True)
    s3.delete_bucket(Bucket=BUCKET)
    health = httpx2.get(f"{installation.url}/healthz", timeout=30)
    assert (health.status_code, health.json()["checks"]["objects"]) == (200, "down")
    assert ctl("node", "create", "still")[0] == 0
    (tmp_path / "f").write_text("x")
    code, _, err = ctl("artifacts", "put", str(tmp_path / "f"))
    assert code == 3
    assert "provision apply buckets" in err


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        ({"S3_SECRET": ""}, 2, "S3_ACCESS_KEY and S3_SECRET"),
        ({"S3_ENDPOINT": "s3.internal"}, 2, "S3_ENDPOINT"),
        ({"KMS_ENDPOINT": "kms.internal"}, 2, "KMS_ENDPOINT"),
        ({"KMS_ENDPOINT": "http://127.0.0.1:9"}, 3, "KMS"),
        ({"AUDIT_KMS_KEY_ID": "alias/none"}, 2, "provision apply keys"),
        ({"S3_ERASER_SECRET": ""}, 2, "S3_ERASER_ACCESS_KEY and S3_ERASER_SECRET"),
        ({"SERVICE_ENV": "prod", "S3_ENDPOINT": "http://s3.internal"}, 4, "S3_ENDPOINT"),
    ],
    ids=["secret", "endpoint", "kms endpoint", "kms down", "no key", "eraser", "prod"],
)
def test_settings_that_are_refused(
    data_folder: Path, settings: dict[str, str], change: dict[str, str], code: int, expected: str
) -> None:
    done = run_ctl("up", "--data", str(data_folder), "--port", "0", env=clean_environment() | settings | change)
    # A guard of production lists all that it refuses above its last line.
    said = done.stderr if code == 4 else done.stderr.rstrip().splitlines()[-1]
    assert (done.returncode, expected in said) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert_no_secrets(done.stderr)
    assert S3_SECRET not in done.stderr


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not within a minute: {what}"
        time.sleep(0.1)
