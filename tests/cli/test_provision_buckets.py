"""`memoryctl provision plan / apply / probe buckets` on moto: what is missing is made once, what was changed is put back, what cannot be is
told; and a probe finds a server whose locks do not hold. moto looks at no condition of a policy and denies what one of its denials
names: so its buckets are probed without the policy. tests/cli/test_provision_buckets_ceph.py has the server that evaluates them."""

from __future__ import annotations

import datetime as dt
import http.client
import http.server
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memory_layer.cli import main
from memory_layer.ops.provision import bucket_documents, bucket_sample
from tests.support.key_services import assert_no_secrets
from tests.support.s3_server import S3Server

Run = Callable[..., tuple[int, str, str]]
AWS_ROLES = "arn:aws:iam::123456789012:role/"


@pytest.fixture
def prefix() -> str:
    return f"t-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, aws: None, prefix: str
) -> Run:
    for name in ("DATABASE_URL", "S3_BUCKET", "S3_ENDPOINT", "S3_REGION", "ARCHIVE_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BUCKET_PREFIX", prefix)
    monkeypatch.setenv("SERVICE_ENV", "staging")
    monkeypatch.setenv("MEMORY_DATA", str(tmp_path))

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["provision", *words])
        out, err = capsys.readouterr()
        assert_no_secrets(out + err)
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def s3(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch, run: Run) -> S3Server:
    monkeypatch.setenv("S3_ENDPOINT", moto_s3.endpoint)
    monkeypatch.setenv("S3_REGION", "us-east-1")
    monkeypatch.setenv("S3_ADMIN_ACCESS_KEY", moto_s3.access_key)
    monkeypatch.setenv("S3_ADMIN_SECRET", moto_s3.secret)
    return moto_s3


def findings(out: str) -> dict[str, dict[str, Any]]:
    return {found["id"]: found for found in json.loads(out)["findings"]}


def states(out: str) -> dict[str, str]:
    """What each finding says: pass, skip, missing, changed, drift, unsupported, broken, ..."""
    return {name: found["evidence"].get("state", found["status"]) for name, found in findings(out).items()}


def made(out: str) -> list[str]:
    return list(json.loads(out)["facts"]["made"])


def wrong(out: str) -> dict[str, str]:
    return {name: state for name, state in states(out).items() if state not in ("pass", "skip")}


def test_buckets_are_planned_made_once_and_then_there(
    run: Run, s3: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_REPLICA_REGION", "eu-west-1")
    monkeypatch.setenv("S3_REPLICA_ENDPOINT", s3.endpoint)
    monkeypatch.setenv("S3_KMS_KEY_ID", "arn:aws:kms:us-east-1:123456789012:key/here")
    artifacts, archive = f"{prefix}-memory-staging", f"{prefix}-audit-archive-staging"
    labels = ("artifacts", "archive", "artifacts-replica", "archive-replica")
    client = s3.client()

    code, out, _ = run("plan", "buckets", "--json")
    assert code == 1
    assert wrong(out) == {f"buckets.{label}.exists": "missing" for label in labels}
    assert not [b for b in client.list_buckets()["Buckets"] if b["Name"].startswith(prefix)]

    code, out, _ = run("apply", "buckets", "--yes", "--no-probe", "--json")
    assert (code, wrong(out)) == (0, {})
    for bucket in (artifacts, archive, f"{artifacts}-replica", f"{archive}-replica"):
        assert client.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
        lock = client.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]
        assert lock["ObjectLockEnabled"] == "Enabled"
        if bucket.startswith(archive):
            assert {"Mode": "COMPLIANCE", "Days": 365}.items() <= lock["Rule"]["DefaultRetention"].items()
        rules = {rule["ID"]: rule for rule in client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]}
        moves = [
            (t["Days"], t["StorageClass"]) for t in rules[next(n for n in rules if n.endswith("cold"))]["Transitions"]
        ]
        assert moves == ([(30, "GLACIER_IR"), (365, "DEEP_ARCHIVE")] if "archive" in bucket else [(90, "GLACIER")])
        assert rules["unfinished-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
        encryption = client.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
        wanted = {"SSEAlgorithm": "aws:kms"}
        if not bucket.endswith("replica"):
            wanted["KMSMasterKeyID"] = "arn:aws:kms:us-east-1:123456789012:key/here"
        assert encryption["ApplyServerSideEncryptionByDefault"] == wanted
        blocked = client.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
        assert blocked["RestrictPublicBuckets"]
        assert blocked["BlockPublicPolicy"]
    replication = client.get_bucket_replication(Bucket=archive)["ReplicationConfiguration"]["Rules"][0]
    assert replication["Destination"]["Bucket"] == f"arn:aws:s3:::{archive}-replica"
    assert replication["DeleteMarkerReplication"] == {"Status": "Disabled"}

    code, out, _ = run("plan", "buckets", "--json")
    assert (code, wrong(out)) == (0, {})
    code, out, _ = run("apply", "buckets", "--no-probe", "--json")
    assert (code, made(out)) == (0, [])


def test_only_what_was_never_held_or_was_released_goes_to_a_cold_class() -> None:
    """A rule of S3 cannot say "without this tag": the store sets the tag on every PUT, and the rule asks for its value."""
    from memory_layer.stores.objects.s3_bucket import tag_of

    (cold,) = (rule for rule in bucket_documents.lifecycle("artifacts") if rule["ID"] == "artifacts-cold")
    assert cold["Filter"]["Tag"] == tag_of(False)
    assert cold["Filter"]["Tag"] != tag_of(True)


def test_what_somebody_changed_is_found_and_put_back(run: Run, s3: S3Server, prefix: str) -> None:
    assert run("apply", "buckets", "--yes", "--no-probe")[0] == 0
    client, archive, artifacts = s3.client(), f"{prefix}-audit-archive-staging", f"{prefix}-memory-staging"
    client.put_bucket_lifecycle_configuration(
        Bucket=artifacts,
        LifecycleConfiguration={
            "Rules": [{"ID": "x", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]
        },
    )
    client.put_bucket_versioning(Bucket=artifacts, VersioningConfiguration={"Status": "Suspended"})
    weak = {"Mode": "GOVERNANCE", "Days": 365}
    client.put_object_lock_configuration(
        Bucket=archive, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": weak}}
    )
    client.delete_bucket_policy(Bucket=archive)
    client.delete_public_access_block(Bucket=archive)
    client.delete_bucket_encryption(Bucket=archive)

    changed = {
        "buckets.artifacts.lifecycle": "changed",
        "buckets.artifacts.versioning": "changed",
        "buckets.archive.retention": "changed",
        "buckets.archive.policy": "missing",
        "buckets.archive.public": "missing",
        "buckets.archive.encryption": "missing",
    }
    code, out, _ = run("plan", "buckets", "--json")
    assert (code, wrong(out)) == (1, changed | {"buckets.replica": "drift"})
    evidence = findings(out)["buckets.archive.retention"]["evidence"]
    assert (evidence["found"], evidence["wanted"]) == (weak, {"Mode": "COMPLIANCE", "Days": 365})

    code, out, _ = run("apply", "buckets", "--yes", "--no-probe", "--json")
    assert (code, len(made(out))) == (0, len(changed))
    assert wrong(run("plan", "buckets", "--json")[1]) == {"buckets.replica": "drift"}


def test_without_consent_nothing_is_made(run: Run, s3: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_layer.cli.render.confirm", lambda *_, yes: yes)
    assert run("apply", "buckets")[0] == 1
    assert not [b for b in s3.client().list_buckets()["Buckets"] if b["Name"].startswith(prefix)]


def test_object_lock_is_not_added_to_what_was_made_without(run: Run, s3: S3Server, prefix: str) -> None:
    archive = f"{prefix}-audit-archive-staging"
    s3.client().create_bucket(Bucket=archive)
    for verb in (("plan", "buckets"), ("apply", "buckets", "--yes", "--no-probe")):
        code, out, _ = run(*verb, "--json")
        found = findings(out)["buckets.archive.lock"]
        assert (code, found["evidence"]["state"]) == (1, "drift")
        assert "copy everything over" in found["hint"]
    code, out, _ = run("probe", "buckets", "--json")
    assert (code, findings(out)["buckets.archive.probe.put"]["status"]) == (1, "fail")


def test_a_longer_lock_is_never_shortened(run: Run, s3: S3Server, prefix: str) -> None:
    assert run("apply", "buckets", "--yes", "--no-probe")[0] == 0
    client, archive = s3.client(), f"{prefix}-audit-archive-staging"
    longer = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Years": 7}}}
    client.put_object_lock_configuration(Bucket=archive, ObjectLockConfiguration=longer)
    code, out, _ = run("apply", "buckets", "--no-probe", "--json")
    assert (code, made(out)) == (0, [])
    found = client.get_object_lock_configuration(Bucket=archive)["ObjectLockConfiguration"]
    assert found["Rule"]["DefaultRetention"]["Years"] == 7


def test_statements_of_others_stay_and_one_for_everybody_is_reported(run: Run, s3: S3Server, prefix: str) -> None:
    assert run("apply", "buckets", "--yes", "--no-probe")[0] == 0
    client, archive = s3.client(), f"{prefix}-audit-archive-staging"
    public = {
        "Sid": "Theirs",
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{archive}/*"],
    }
    client.put_bucket_policy(Bucket=archive, Policy=json.dumps({"Version": "2012-10-17", "Statement": [public]}))
    code, out, _ = run("apply", "buckets", "--yes", "--no-probe", "--json")
    assert (code, states(out)["buckets.archive.policy.others"]) == (1, "drift")
    statements = json.loads(client.get_bucket_policy(Bucket=archive)["Policy"])["Statement"]
    assert public in statements
    assert len(statements) > 5


def test_what_a_server_lacks_is_a_finding(run: Run, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto forgets which objects a rule of replication selects, which SSE-KMS needs on AWS."""
    monkeypatch.setenv("S3_ROLE_ARN_PREFIX", AWS_ROLES)
    monkeypatch.setenv("S3_REPLICA_REGION", "us-east-1")
    monkeypatch.setenv("S3_REPLICA_ENDPOINT", s3.endpoint)
    code, out, _ = run("apply", "buckets", "--yes", "--no-probe", "--json")
    assert (code, wrong(out)) == (
        1,
        {"buckets.artifacts.replication": "unsupported", "buckets.archive.replication": "unsupported"},
    )


def test_a_server_that_does_not_answer_is_exit_3(run: Run, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("S3_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        code, _, err = run("plan", "buckets")
    assert (code, "cannot be reached" in err) == (3, True)


def test_half_a_login_and_a_bad_name_are_usage(run: Run, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_BUCKET", "No_Bucket/..")
    code, _, err = run("plan", "buckets")
    assert (code, "no valid one" in err) == (2, True)
    monkeypatch.delenv("S3_ADMIN_SECRET")
    code, _, err = run("plan", "buckets")
    assert (code, "set alone" in err) == (2, True)


def test_prod_over_plain_http_elsewhere_is_refused(run: Run, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_ENV", "prod")
    monkeypatch.setenv("S3_ENDPOINT", "http://s3.example.com")
    assert run("plan", "buckets")[0] == 4


def test_a_directory_has_nothing_to_provision_and_says_what_it_cannot(run: Run, tmp_path: Path) -> None:
    for verb in (("plan", "buckets"), ("apply", "buckets", "--yes"), ("probe", "buckets")):
        code, out, _ = run(*verb, "--json")
        assert (code, set(states(out).values())) == (0, {"skip"})
        assert "director" in findings(out)["buckets.directory"]["finding"]
    assert run("plan", "buckets", "--policies", str(tmp_path / "p"))[0] == 2


def test_policies_are_written_as_files(run: Run, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_ROLE_ARN_PREFIX", AWS_ROLES)
    run("plan", "buckets", "--policies", str(tmp_path / "p"))
    names = {path.stem for path in (tmp_path / "p").iterdir()}
    roles = ("memory-layer-writer", "audit-reader", "compliance", "memory-layer-eraser", "break-glass-admin")
    assert {f"role-{name}" for name in (*roles, "break-glass-admin.trust")} | {
        "bucket-artifacts",
        "bucket-archive",
    } == names
    for path in (tmp_path / "p").iterdir():
        assert json.loads(path.read_text())["Version"] == "2012-10-17"


# --- the probe


def bare(s3: S3Server, prefix: str) -> tuple[str, str]:
    """Buckets with Object Lock and without a policy."""
    names = (f"{prefix}-memory-staging", f"{prefix}-audit-archive-staging")
    for name in names:
        s3.client().create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return names


def test_the_probe_finds_a_server_that_shortens_compliance(run: Run, s3: S3Server, prefix: str) -> None:
    """Every setting of these buckets is right: only who tries it finds that moto gives way."""
    bare(s3, prefix)
    code, out, _ = run("probe", "buckets", "--json")
    assert (code, json.loads(out)["verdict"]) == (1, "findings")
    found = states(out)
    for label in ("artifacts", "archive"):
        assert found[f"buckets.{label}.probe.shorten"] == "broken"
        assert found[f"buckets.{label}.probe.delete"] == "pass"  # which moto does refuse
    assert found["buckets.archive.probe.bound"] == "drift"
    assert "object-lock.md" in findings(out)["buckets.archive.probe.shorten"]["hint"]


def test_a_bucket_that_is_not_there_fails_the_probe(run: Run, s3: S3Server) -> None:
    code, out, _ = run("probe", "buckets", "--json")
    assert (code, states(out)["buckets.archive.probe.put"]) == (1, "missing")


# --- replication


class Mirror(http.server.BaseHTTPRequestHandler):
    """A second region whose bucket X-replica is the bucket X of moto, some seconds late."""

    target = ""
    late = 0.0
    forgets = False  # the locks that a PUT asks for
    first: dict[str, float]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        began = self.first.setdefault(self.path, time.monotonic())
        if self.command == "HEAD" and "probe/lock" in self.path and time.monotonic() - began < self.late:
            self.send_response(404)
            self.end_headers()
            return
        connection = http.client.HTTPConnection(self.target, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        if self.forgets:
            headers = {name: value for name, value in headers.items() if "object-lock" not in name.lower()}
        connection.request(self.command, self.path.replace("-replica", ""), body, headers)
        got = connection.getresponse()
        told = got.read()
        self.send_response(got.status)
        for name, value in got.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", got.getheader("Content-Length") or str(len(told)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(told)
        connection.close()

    do_GET = answer  # noqa: N815 - their names in the standard library
    do_HEAD = answer  # noqa: N815
    do_PUT = answer  # noqa: N815
    do_POST = answer  # noqa: N815
    do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def mirror(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Mirror]]:
    handler = type("LateMirror", (Mirror,), {"target": s3.endpoint.removeprefix("http://"), "first": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("S3_REPLICA_REGION", "us-east-1")
    monkeypatch.setenv("S3_REPLICA_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def replicated(s3: S3Server, prefix: str) -> None:
    for name in bare(s3, prefix):
        rule = bucket_documents.replication(f"{AWS_ROLES}r", f"{name}-replica", None)
        s3.client().create_bucket(Bucket=f"{name}-replica")
        s3.client().put_bucket_versioning(Bucket=f"{name}-replica", VersioningConfiguration={"Status": "Enabled"})
        s3.client().put_bucket_replication(Bucket=name, ReplicationConfiguration=rule)


@pytest.mark.slow
def test_the_lag_of_the_replica_is_measured(run: Run, s3: S3Server, prefix: str, mirror: type[Mirror]) -> None:
    replicated(s3, prefix)
    mirror.late = 1.0
    _, out, _ = run("probe", "buckets", "--wait", "30", "--json")
    lags = json.loads(out)["facts"]["replicationLagSeconds"]
    assert set(lags) == {"artifacts", "archive"}
    assert all(1.0 <= lag < 30 for lag in lags.values())
    found = states(out)
    assert (found["buckets.archive.replication.lag"], found["buckets.archive.replication.lock"]) == ("pass", "pass")
    assert found["buckets.archive-replica.probe.shorten"] == "broken"  # the replica is probed too


@pytest.mark.slow
def test_a_replica_that_stays_behind_is_reported(run: Run, s3: S3Server, prefix: str, mirror: type[Mirror]) -> None:
    replicated(s3, prefix)
    mirror.late = 3600.0
    _, out, _ = run("probe", "buckets", "--wait", "1", "--json")
    assert json.loads(out)["facts"]["replicationLagSeconds"] == {"artifacts": None, "archive": None}
    assert findings(out)["buckets.archive.replication.lag"]["status"] == "fail"


def test_the_probe_finds_a_server_that_forgets_locks(
    run: Run, s3: S3Server, prefix: str, mirror: type[Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes every PUT, and shows Object Lock as enabled."""
    bare(s3, prefix)
    mirror.forgets = True
    monkeypatch.setenv("S3_ENDPOINT", os.environ["S3_REPLICA_ENDPOINT"])
    monkeypatch.delenv("S3_REPLICA_REGION")
    code, out, _ = run("probe", "buckets", "--json")
    found = states(out)
    assert (code, found["buckets.archive.probe.delete"], found["buckets.archive.probe.kept"]) == (1, "broken", "broken")


# --- the sample


def put(client: Any, bucket: str, key: str, mode: str | None = "COMPLIANCE", days: float = 30) -> str:
    lock = {} if mode is None else {"ObjectLockMode": mode, "ObjectLockRetainUntilDate": _in(days)}
    return str(client.put_object(Bucket=bucket, Key=key, Body=b"1", ChecksumAlgorithm="SHA256", **lock)["VersionId"])


def _in(days: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=days)


def test_sampled_objects_must_be_under_compliance(run: Run, s3: S3Server, prefix: str) -> None:
    client, (_, archive) = s3.client(), bare(s3, prefix)
    for number in range(20):
        put(client, archive, f"audit/{number:03}")
    _, out, _ = run("probe", "buckets", "--samples", "10", "--json")
    assert states(out)["buckets.archive.sample.lock"] == "pass"
    assert findings(out)["buckets.archive.sample.lock"]["evidence"] == {"sampled": 10, "listed": 20}

    put(client, archive, "audit/900", "GOVERNANCE")
    put(client, archive, "audit/901", None)
    put(client, archive, "audit/003")  # over another
    client.delete_object(Bucket=archive, Key="audit/004")  # a marker
    code, out, _ = run("probe", "buckets", "--samples", "100", "--json")
    assert code == 1
    loose = findings(out)["buckets.archive.sample.lock"]
    assert (loose["level"], [o["key"] for o in loose["evidence"]["objects"]]) == ("error", ["audit/900", "audit/901"])
    assert findings(out)["buckets.archive.sample.shadowed"]["evidence"]["keys"] == ["audit/003", "audit/004"]


def test_a_lock_that_ran_out_before_its_time_is_no_lock(run: Run, s3: S3Server, prefix: str) -> None:
    client, (_, archive) = s3.client(), bare(s3, prefix)
    short = dt.timedelta(seconds=2) / dt.timedelta(days=1)
    put(client, archive, "audit/1", days=short)
    put(client, archive, "vectors/nightly/1", days=short)  # a snapshot, whose lock was not to be longer
    over = _in(short)
    while dt.datetime.now(dt.UTC) <= over:
        time.sleep(0.1)
    _, out, _ = run("probe", "buckets", "--json")
    loose, expired = (findings(out)[f"buckets.archive.sample.{name}"] for name in ("lock", "expired"))
    assert (loose["level"], [o["key"] for o in loose["evidence"]["objects"]]) == ("error", ["audit/1"])
    assert (expired["level"], [o["key"] for o in expired["evidence"]["objects"]]) == ("warning", ["vectors/nightly/1"])


def test_a_sample_is_drawn_evenly_goes_round_and_has_an_end(s3: S3Server, prefix: str) -> None:
    client, (bucket, _) = s3.client(), bare(s3, prefix)
    keys = [f"k{number:02}" for number in range(30)]
    for key in keys:
        put(client, bucket, key, None)
    put(client, bucket, f"{bucket_documents.PROBED}x", None)
    everything = bucket_sample.draw(client, bucket, 100, "k14")
    assert (sorted(line.key for line in everything.lines), everything.to) == (keys, None)
    drawn = {line.key for _ in range(60) for line in bucket_sample.draw(client, bucket, 5).lines}
    assert len(drawn) > 25  # each is missing from all sixty with a chance of 2 in 100,000
    short = bucket_sample.draw(client, bucket, 5, None, most=10)
    assert short.to == "k29"  # a page is taken whole


def test_artifacts_must_be_locked_until_the_date_that_they_are_kept_to(s3: S3Server, prefix: str) -> None:
    from memory_layer.ops.provision.buckets import Bucket
    from memory_layer.stores.objects.s3_client import Login

    client, (name, _) = s3.client(), bare(s3, prefix)
    bucket = Bucket("artifacts", name, "artifacts", Login(None, None, None, None), None)
    good = bucket_sample.Expected("a", put(client, name, "a", days=30), _in(29))
    short = bucket_sample.Expected("b", put(client, name, "b", days=5), _in(29))
    loose = bucket_sample.Expected("c", put(client, name, "c", None), _in(29))
    gone = bucket_sample.Expected("d", str(uuid.uuid4()), _in(29))
    weak = bucket_sample.Expected("e", put(client, name, "e", "GOVERNANCE", days=30), _in(29))
    (fine,) = bucket_sample.artifacts(bucket, client, [good], "COMPLIANCE")
    assert fine.status == "pass"
    (bad,) = bucket_sample.artifacts(bucket, client, [good, weak], "COMPLIANCE")
    assert (bad.status, [(o["key"], o["mode"]) for o in bad.evidence["objects"]]) == ("fail", [("e", "GOVERNANCE")])
    (allowed,) = bucket_sample.artifacts(bucket, client, [good, weak], "GOVERNANCE")  # where the setting says so
    assert allowed.status == "pass"
    (found,) = bucket_sample.artifacts(bucket, client, [good, short, loose, gone], "COMPLIANCE")
    assert (found.status, [o["key"] for o in found.evidence["objects"]]) == ("fail", ["b", "c", "d"])
