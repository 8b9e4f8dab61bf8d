"""SERVICE_ENV=prod: everything that must not be so is named at once, and nothing else is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from memory_layer import config
from memory_layer.errors import PolicyRefused, UsageError
from memory_layer.model import uuid7
from memory_layer.ops import first_start, prod_guard
from tests.support.product import run_ctl

Database = Callable[[str], str]
BUCKETS = ["illuvrse-memory-prod", "illuvrse-audit-archive-prod"]
REMOTE = "postgresql://memory_app:correct-horse@db.internal/memory?sslmode=verify-full"
ALL = {
    "prod.database-tls", "prod.signing-key", "prod.tokens", "prod.transport", "prod.strict-reads", "prod.secrets", "prod.object-lock",
}  # fmt: skip
RIGHT: dict[str, Any] = {
    "service_env": "prod",
    "database_url": REMOTE,
    "audit_kms_key_id": "alias/x",
    "jwt_jwks_url": "https://issuer.example.com/keys",
    "trusted_proxies": "10.0.0.7",
    "s3_bucket": BUCKETS[0],
    "s3_region": "us-east-1",
}


def failed(**settings: Any) -> dict[str, str]:
    """Ids of findings, and what they say with their remedy; that of the probe, which needs a database, where there is one."""
    found = list(prod_guard.findings(config.load({}, **settings)))
    assert {finding.id for finding in found} == ALL
    assert all(finding.hint for finding in found if finding.status == "fail")
    return {finding.id: f"{finding.finding} {finding.hint}" for finding in found if finding.status == "fail"}


def test_everything_is_named_at_once_with_its_remedy_and_no_secret(tmp_path: Path) -> None:
    environment = {
        "SERVICE_ENV": "prod", "DATABASE_URL": "postgresql://memory_app:memory_app@127.0.0.1:1/memory", "VERIFY_READS": "off",
        "S3_SECRET": "minioadmin", "S3_ACCESS_KEY": "x",
    }  # fmt: skip
    for command in ("up", "serve", "worker"):
        ended = run_ctl(command, "--data", str(tmp_path / "data"), env=environment)
        assert ended.returncode == 4, ended.stderr
        listed = dict(re.findall(r"^  (prod\.[a-z-]+): (.+)$", ended.stderr, re.MULTILINE))
        assert set(listed) == ALL
        for named in (
            "sslmode=verify-full",
            "AUDIT_KMS_KEY_ID",
            "JWT_JWKS_URL",
            "TLS_CERT",
            "VERIFY_READS=strict",
            "S3_BUCKET",
        ):
            assert named in ended.stderr
        assert "DATABASE_URL, S3_SECRET" in listed["prod.secrets"]
        assert "minioadmin" not in ended.stderr
        assert "memory_app:memory_app" not in ended.stderr
        assert ended.stderr.splitlines()[-1].startswith("memoryctl: SERVICE_ENV=prod refuses to start")
        assert not (tmp_path / "data").exists()
    # Elsewhere all of this is anybody's own affair.
    first_start.check_settings(
        config.load({name: value for name, value in environment.items() if name == "VERIFY_READS"})
    )


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        *(({"database_url": REMOTE.replace("verify-full", mode)}, "prod.database-tls") for mode in ("require", "verify-ca", "disable")),
        ({"database_url": REMOTE.partition("?")[0]}, "prod.database-tls"),
        ({"database_url": "host=/run/postgresql,db.internal user=x dbname=y"}, "prod.database-tls"),
        ({"database_url": "hostaddr=10.0.0.5 user=x dbname=y"}, "prod.database-tls"),
        ({"database_url": "service=memory"}, "prod.database-tls"),
        ({"migration_database_url": "postgresql://memory_owner:correct-horse@db.internal/memory"}, "prod.database-tls"),
        ({"vector_db_endpoint": "postgresql://vectors:correct-horse@vectors.internal/v"}, "prod.database-tls"),
        ({"audit_kms_key_id": None}, "prod.signing-key"),
        ({"audit_signer": "local"}, "prod.signing-key"),
        ({"jwt_jwks_url": None}, "prod.tokens"),
        ({"trusted_proxies": None}, "prod.transport"),
        ({"verify_reads": "off"}, "prod.strict-reads"),
        ({"database_url": REMOTE.replace("correct-horse", "Postgres")}, "prod.secrets"),
        ({"database_url": REMOTE.replace("correct-horse", "memory_app")}, "prod.secrets"),
        ({"vector_db_api_key": "root:Milvus"}, "prod.secrets"),
        ({"vector_db_admin_key": "admin:admin"}, "prod.secrets"),
        ({"s3_eraser_access_key": "minioadmin", "s3_eraser_secret": "minioadmin"}, "prod.secrets"),
        ({"vault_token": "root"}, "prod.secrets"),
        ({"audit_anchors": "/srv/a https://anchor:password@host.example/a"}, "prod.secrets"),
        ({"s3_bucket": None, "s3_region": None}, "prod.object-lock"),
    ],
    ids=str,
)  # fmt: skip
def test_each_thing_alone(changed: dict[str, Any], finding: str) -> None:
    assert set(failed(**RIGHT | changed)) - {"prod.object-lock"} == {finding} - {"prod.object-lock"}
    assert finding in failed(**RIGHT | changed)


def test_what_is_right_passes() -> None:
    assert failed(**RIGHT) == {}
    assert failed(**RIGHT | {"trusted_proxies": None, "tls_cert": "a", "tls_key": "b"}) == {}
    assert failed(**RIGHT | {"database_url": "postgresql:///memory?host=/run/postgresql&user=memory_app"}) == {}
    assert (
        failed(**RIGHT | {"vector_db_provider": "milvus", "vector_db_endpoint": "https://milvus.internal:19530"}) == {}
    )
    with pytest.raises(UsageError, match="DATABASE_URL"):
        failed(**RIGHT | {"database_url": "postgresql://memory_app:x@db:port/memory"})


def test_an_environment_of_libpq_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = RIGHT | {"database_url": REMOTE.partition("?")[0]}
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert failed(**bare) == {}
    monkeypatch.setenv("PGSSLMODE", "require")
    assert set(failed(**bare)) == {"prod.database-tls"}
    monkeypatch.setenv("PGHOST", "db.internal")
    assert set(failed(**RIGHT | {"database_url": "postgresql:///memory"})) == {"prod.database-tls"}
    monkeypatch.delenv("PGHOST")
    assert failed(**RIGHT | {"database_url": "postgresql:///memory"}) == {}
    monkeypatch.setenv("PGHOSTADDR", "10.0.0.5")
    assert set(failed(**RIGHT | {"database_url": "postgresql:///memory"})) == {"prod.database-tls"}


def test_locks_must_have_been_tried_lately_and_with_success(database: Database) -> None:
    asked = RIGHT | {"database_url": database("memory_app")}
    assert set(failed(**asked)) == {"prod.object-lock"}

    def record(days: int, verdict: str = "ok", verb: str = "provision-probe-buckets", **arguments: Any) -> None:
        with psycopg.connect(database("postgres")) as owner:
            owner.execute("DELETE FROM ops_runs")
            owner.execute(
                "INSERT INTO ops_runs (id, verb, arguments, started_at, finished_at, verdict, exit_code, report)"
                " VALUES (%s, %s, %s::jsonb, now() - %s * interval '1 day', now() - %s * interval '1 day', %s, 0, '{}')",
                [uuid7(), verb, psycopg.types.json.Jsonb({"buckets": BUCKETS} | arguments), days, days, verdict],
            )

    for wrong in (
        {"days": 15}, {"days": 1, "verdict": "findings"}, {"days": 1, "buckets": [BUCKETS[0]]}, {"days": 1, "verb": "migrate-apply"},
        {"days": 1, "verb": "provision-apply-buckets", "probe": False},
    ):  # fmt: skip
        record(**wrong)  # type: ignore[arg-type]
        assert set(failed(**asked)) == {"prod.object-lock"}, wrong
    for right in (
        {"days": 13},
        {"days": 1, "verb": "provision-apply-buckets", "probe": True},
        {"days": 6, "verb": "buckets-weekly"},
    ):
        record(**right)  # type: ignore[arg-type]
        assert failed(**asked) == {}, right
    prod_guard.refuse(config.load({}, **asked))


def test_what_other_parts_refuse_in_prod_is_listed_too() -> None:
    def other(_: config.Settings) -> None:
        raise PolicyRefused("an emulator is set.")

    with pytest.raises(PolicyRefused) as refused:
        prod_guard.refuse(config.load({}, service_env="prod"), other)
    assert ("prod.settings", "an emulator is set.") in refused.value.details
    assert {problem.path for problem in refused.value.details} == {"prod.settings", *ALL} - {
        "prod.database-tls",
        "prod.secrets",
        "prod.strict-reads",
    }
