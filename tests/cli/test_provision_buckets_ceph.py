"""The buckets and the roles on Ceph's gateway, which evaluates policies and enforces locks: what provision makes there, what each role may
really do, and that the probe passes. Not proved here: what Ceph 16 does not have (SSE-KMS, replication, cold classes, MFA, roles'
ARNs in conditions, remaining days)."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import msgspec
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from memory_layer import config
from memory_layer.cli import main
from memory_layer.config import Settings
from memory_layer.errors import MemoryLayerError, UsageError
from memory_layer.ops.checks import Survey
from memory_layer.ops.provision import bucket_documents as documents
from memory_layer.ops.provision import bucket_policies, buckets
from memory_layer.ops.provision.bucket_documents import BREAK_GLASS, COMPLIANCE, ERASER, READER, WRITER
from memory_layer.stores.objects import open_archive, open_eraser, open_objects
from memory_layer.stores.protocols import Lock
from tests.support.policy_language import allowed
from tests.support.s3_server import REGION, S3Server

pytestmark = pytest.mark.real
ROLES = (WRITER, READER, COMPLIANCE, ERASER, BREAK_GLASS)
Clients = dict[str, Any]


def survey(settings: Settings, *, make: bool = False) -> Survey:
    """As plan shows the buckets, or as apply makes them."""
    found = Survey(make)
    asyncio.run(buckets.examine(found, settings))
    return found


@pytest.fixture(scope="module")
def prefix() -> str:
    return f"t-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def settings(ceph_s3: S3Server, prefix: str) -> Settings:
    return config.load(
        {},
        s3_endpoint=ceph_s3.endpoint,
        s3_region=REGION,
        s3_admin_access_key=ceph_s3.access_key,
        s3_admin_secret=ceph_s3.secret,
        bucket_prefix=prefix,
    )


@pytest.fixture(scope="module")
def roles(ceph_s3: S3Server, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """Buckets as apply makes them, and a user of Ceph for each role, who has nothing but the policy that provision wrote for it."""
    assert survey(settings, make=True).right
    folder = tmp_path_factory.mktemp("policies")
    bucket_policies.write(settings, folder)
    _admin(ceph_s3, "caps", "add", "--uid", "test", "--caps", "user-policy=*")
    iam = boto3.client(
        "iam",
        endpoint_url=ceph_s3.endpoint,
        region_name=REGION,
        aws_access_key_id=ceph_s3.access_key,
        aws_secret_access_key=ceph_s3.secret,
    )
    clients: Clients = {"admin": ceph_s3.client()}
    for role in ROLES:
        _admin(
            ceph_s3,
            "user",
            "create",
            "--uid",
            role,
            "--display-name",
            role,
            "--access-key",
            role,
            "--secret-key",
            f"{role}-s",
        )
        document = (folder / f"role-{role}.json").read_text()
        iam.put_user_policy(UserName=role, PolicyName="role", PolicyDocument=document)
        clients[role] = _client(ceph_s3, role)
    yield clients
    for role in ROLES:
        _admin(ceph_s3, "user", "rm", "--uid", role)


def _admin(server: S3Server, *words: str) -> None:
    subprocess.run(["radosgw-admin", "-c", str(server.conf), *words], check=True, capture_output=True, timeout=60)


def _client(server: S3Server, role: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=REGION,
        aws_access_key_id=role,
        aws_secret_access_key=f"{role}-s",
        config=Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        ),
    )


def _in(days: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=days)


def may(act: Callable[[], object]) -> bool:
    try:
        act()
    except ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDenied", error  # noqa: PT017 - another answer is no denial
        return False
    return True


def test_apply_makes_what_ceph_has_and_tells_what_it_lacks(settings: Settings, roles: Clients) -> None:
    found = {f.id: f for f in survey(settings).findings}
    lacking = {name for name, f in found.items() if f.status not in ("pass", "skip")}
    assert lacking == {"buckets.artifacts.encryption", "buckets.archive.encryption", "buckets.replica"}
    assert {found[name].level for name in lacking} == {"warning"}
    again = survey(settings, make=True)
    assert again.made == []
    refused = next(f for f in again.findings if f.id == "buckets.archive.encryption")
    assert refused.evidence["state"] == "unsupported"
    client = roles["admin"]
    lock = client.get_object_lock_configuration(Bucket=found["buckets.archive.exists"].evidence["bucket"])
    retention = lock["ObjectLockConfiguration"]["Rule"]["DefaultRetention"]
    assert retention == {"Mode": "COMPLIANCE", "Days": 365}


def test_the_probe_passes_as_the_service_runs_it(
    roles: Clients,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """With the writer's key and the eraser's, and no administrator's: and Ceph shows that it does not look at remaining days.

    Before the tests that leave objects under weaker locks, which the sample rightly names."""
    for name in ("DATABASE_URL", "S3_BUCKET", "ARCHIVE_BUCKET", "S3_ADMIN_ACCESS_KEY", "S3_ADMIN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    environment = {
        "S3_ENDPOINT": settings.s3_endpoint,
        "S3_REGION": REGION,
        "BUCKET_PREFIX": settings.bucket_prefix,
        "S3_ACCESS_KEY": WRITER,
        "S3_SECRET": f"{WRITER}-s",
        "S3_ERASER_ACCESS_KEY": ERASER,
        "S3_ERASER_SECRET": f"{ERASER}-s",
        "MEMORY_DATA": str(tmp_path),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit) as ended:
        main(["provision", "probe", "buckets", "--json"])
    out = json.loads(capsys.readouterr().out)
    found = {f["id"]: f for f in out["findings"]}
    assert (ended.value.code, out["verdict"]) == (0, "ok"), [f for f in out["findings"] if f["status"] != "pass"]
    for label in ("artifacts", "archive"):
        for what in ("shorten", "weaken", "delete", "kept"):
            assert found[f"buckets.{label}.probe.{what}"]["status"] == "pass"
        assert found[f"buckets.{label}.probe.delete"]["evidence"]["control"] is True
    assert (found["buckets.archive.probe.bound"]["level"], found["buckets.archive.probe.bound"]["status"]) == (
        "warning",
        "fail",
    )


async def _bytes(text: bytes) -> AsyncIterator[bytes]:
    yield text


async def test_the_store_of_the_product_works_with_these_roles_alone(
    roles: Clients, settings: Settings, tmp_path: Path
) -> None:
    """Artifacts are written, held, released and erased, an archive is written under its lock; the eraser's key is needed to erase."""
    served = config.load(
        {},
        s3_endpoint=settings.s3_endpoint,
        s3_region=REGION,
        bucket_prefix=settings.bucket_prefix,
        s3_access_key=WRITER,
        s3_secret=f"{WRITER}-s",
        s3_eraser_access_key=ERASER,
        s3_eraser_secret=f"{ERASER}-s",
    )
    store, archive, eraser = (
        open_objects(served, tmp_path),
        open_archive(served, tmp_path),
        open_eraser(served, tmp_path),
    )
    try:
        stored = await store.put("ann", _bytes(uuid.uuid4().bytes))
        await store.set_hold(stored.key, stored.version_id, True)
        with pytest.raises(MemoryLayerError):
            await eraser.delete(stored.key, stored.version_id)
        await store.set_hold(stored.key, stored.version_id, False)
        with pytest.raises(MemoryLayerError):
            await store.delete(stored.key, stored.version_id)
        await eraser.delete(stored.key, stored.version_id)

        lock = Lock("COMPLIANCE", _in(366))
        kept = await archive.put_named(f"audit/{uuid.uuid4()}", _bytes(b"segment"), lock=lock)
        state = await archive.stat(kept.key, kept.version_id)
        assert state.lock is not None
        assert (state.lock.mode, state.hold) == ("COMPLIANCE", False)
        with pytest.raises(MemoryLayerError):
            await archive.set_hold(kept.key, kept.version_id, True)
    finally:
        for opened in (store, archive, eraser):
            await opened.close()


ACTS: dict[str, Callable[[Any, str, str, str], object]] = {
    "PutObject": lambda c, b, k, v: c.put_object(Bucket=b, Key=k, Body=b"2"),
    "GetObjectVersion": lambda c, b, k, v: c.get_object(Bucket=b, Key=k, VersionId=v),
    "DeleteObject": lambda c, b, k, v: c.delete_object(Bucket=b, Key=k),
    "DeleteObjectVersion": lambda c, b, k, v: c.delete_object(Bucket=b, Key=k, VersionId=v),
    "PutObjectLegalHold": lambda c, b, k, v: c.put_object_legal_hold(
        Bucket=b, Key=k, VersionId=v, LegalHold={"Status": "OFF"}
    ),
    "ListBucket": lambda c, b, k, v: c.list_objects_v2(Bucket=b),
    "ListBucketVersions": lambda c, b, k, v: c.list_object_versions(Bucket=b),
    "PutBucketPolicy": lambda c, b, k, v: c.put_bucket_policy(Bucket=b, Policy="{}"),
    "PutLifecycleConfiguration": lambda c, b, k, v: c.put_bucket_lifecycle_configuration(
        Bucket=b,
        LifecycleConfiguration={
            "Rules": [{"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]
        },
    ),
    "DeleteBucket": lambda c, b, k, v: c.delete_bucket(Bucket=b),
}
OF_BUCKETS = ("ListBucket", "ListBucketVersions", "PutBucketPolicy", "PutLifecycleConfiguration", "DeleteBucket")


@pytest.mark.parametrize("role", [WRITER, READER, COMPLIANCE, ERASER, BREAK_GLASS])
@pytest.mark.parametrize("label", ["artifacts", "archive"])
def test_each_role_may_what_its_policy_says_and_no_more(
    settings: Settings, roles: Clients, role: str, label: str
) -> None:
    """Asked of the server, and of the evaluator that the documents for AWS are tested with."""
    names = buckets.names_of(settings)
    bucket = next(b for b in buckets.buckets_of(settings) if b.label == label)
    own, policy = documents.role_policies(names)[role], documents.bucket_policy(names, bucket.kind, bucket.name)
    for action, act in ACTS.items():
        for key in (f"x/{uuid.uuid4()}", f"{documents.PROBES}{uuid.uuid4()}"):
            # Without the archive's default a version can be deleted by whoever may: the lock is the probe's matter.
            lock = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": _in(1)}
            if label == "artifacts":
                lock = {}
            elif action == "DeleteObjectVersion":
                continue
            version = roles["admin"].put_object(
                Bucket=bucket.name, Key=key, Body=b"1", ContentMD5="xMpCOKC5I4INzFCab3WEmw==", **lock
            )
            resource = f"arn:aws:s3:::{bucket.name}" + ("" if action in OF_BUCKETS else f"/{key}")
            meant = allowed(names.role(role), f"s3:{action}", resource, [own], policy, {})
            really = may(lambda: act(roles[role], bucket.name, key, version["VersionId"]))  # noqa: B023 - called at once
            assert (action, key, really) == (action, key, meant)


def test_only_compliance_overrides_governance(settings: Settings, roles: Clients) -> None:
    bucket = buckets.buckets_of(settings)[0].name
    key, lock = f"x/{uuid.uuid4()}", {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": _in(1)}
    put = roles[WRITER].put_object(Bucket=bucket, Key=key, Body=b"1", ContentMD5="xMpCOKC5I4INzFCab3WEmw==", **lock)
    for role in (WRITER, READER, ERASER, BREAK_GLASS, "admin"):
        for bypass in (False, True):
            gone = may(
                lambda: roles[role].delete_object(  # noqa: B023 - called at once
                    Bucket=bucket,
                    Key=key,
                    VersionId=put["VersionId"],
                    BypassGovernanceRetention=bypass,  # noqa: B023
                )
            )
            assert not gone, role
    assert may(
        lambda: roles[COMPLIANCE].delete_object(
            Bucket=bucket, Key=key, VersionId=put["VersionId"], BypassGovernanceRetention=True
        )
    )


def test_nobody_overrides_compliance(settings: Settings, roles: Clients) -> None:
    bucket = buckets.buckets_of(settings)[1].name
    key, lock = f"x/{uuid.uuid4()}", {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": _in(366)}
    put = roles[WRITER].put_object(Bucket=bucket, Key=key, Body=b"1", ContentMD5="xMpCOKC5I4INzFCab3WEmw==", **lock)
    for client in roles.values():
        assert not may(
            lambda: client.delete_object(  # noqa: B023 - called at once
                Bucket=bucket, Key=key, VersionId=put["VersionId"], BypassGovernanceRetention=True
            )
        )


def test_a_probe_whose_hands_are_bound_says_that_it_proves_little(roles: Clients, settings: Settings) -> None:
    """The writer may delete nothing, locked or not: his being refused is no evidence, unless the server names the lock."""
    from memory_layer.ops.provision.bucket_probe import probe

    weak = config.load(
        {},
        s3_endpoint=settings.s3_endpoint,
        s3_region=REGION,
        s3_access_key=WRITER,
        s3_secret=f"{WRITER}-s",
        bucket_prefix=settings.bucket_prefix,
    )
    found = {f.id: f for f in probe(weak, 0.0).findings}
    delete = found["buckets.artifacts.probe.delete"]
    assert (delete.level, delete.status, delete.evidence["state"]) == ("warning", "fail", "inconclusive")


def test_credentials_that_may_not_are_reported_and_wrong_ones_refused(roles: Clients, settings: Settings) -> None:
    def login(key: str, secret: str) -> Settings:
        return msgspec.structs.replace(settings, s3_admin_access_key=key, s3_admin_secret=secret)

    found = {f.id: f for f in survey(login(READER, f"{READER}-s")).findings}
    assert (found["buckets.artifacts.exists"].status, found["buckets.artifacts.exists"].evidence) == (
        "unavailable",
        {"state": "denied"},
    )
    assert found["buckets.archive.policy"].status == "pass"
    with pytest.raises(UsageError, match="access key"):
        survey(login("nobody", "x"))
    with pytest.raises(UsageError, match="secret is wrong"):
        survey(login(READER, "x"))


def test_drift_is_found_and_put_back(settings: Settings, roles: Clients) -> None:
    archive = buckets.buckets_of(settings)[1].name
    roles["admin"].delete_bucket_policy(Bucket=archive)
    roles["admin"].delete_bucket_lifecycle(Bucket=archive)
    wrong = {f.id: f.evidence["state"] for f in survey(settings).repairable if "encryption" not in f.id}
    assert wrong == {"buckets.archive.policy": "missing", "buckets.archive.lifecycle": "missing"}
    assert len(survey(settings, make=True).made) == 2
    assert {f.id for f in survey(settings).repairable} == {
        "buckets.artifacts.encryption",
        "buckets.archive.encryption",
    }
