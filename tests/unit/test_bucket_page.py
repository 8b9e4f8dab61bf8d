"""docs/audit-archive-bucket.md says what provision does: its documents and its table of roles are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from memory_layer import config
from memory_layer.ops.provision import bucket_documents as documents
from memory_layer.ops.provision import bucket_policies, buckets
from memory_layer.ops.provision.bucket_documents import Kind

PAGE = Path(__file__).parents[2] / "docs" / "audit-archive-bucket.md"
KEY = "arn:aws:kms:eu-west-1:123456789012:key/3c4d"
SETTINGS = config.load(
    {},
    service_env="prod",
    s3_region="eu-central-1",
    s3_replica_region="eu-west-1",
    s3_kms_key_id="arn:aws:kms:eu-central-1:123456789012:key/1a2b",
    s3_replica_kms_key_id=KEY,
    s3_role_arn_prefix="arn:aws:iam::123456789012:role/",
)


def blocks() -> dict[str, Any]:
    found = re.findall(r"^`([a-z.-]+)`\n\n```json\n(.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def test_the_documents_on_the_page_are_those_that_are_written(tmp_path: Path) -> None:
    bucket_policies.write(SETTINGS, tmp_path)
    shown = blocks()
    files = {name for name in shown if name.endswith(".json")}
    assert files == {"bucket-archive.json", "bucket-artifacts.json", "role-break-glass-admin.trust.json"}
    for name in files:
        assert shown[name] == json.loads((tmp_path / name).read_text()), name


def test_lifecycle_and_replication_on_the_page_are_those_that_are_set() -> None:
    shown = blocks()
    kinds: tuple[Kind, Kind] = ("archive", "artifacts")
    for kind in kinds:
        assert shown[f"lifecycle-{kind}"] == documents.lifecycle(kind)
    role = "arn:aws:iam::123456789012:role/memory-layer-replication"
    assert shown["replication-archive"] == documents.replication(role, "illuvrse-audit-archive-prod-replica", KEY)


def test_the_table_of_roles_is_what_they_may() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| (\w+:[^|]*) \| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    shown = {(role, sid): (actions.split(", "), where.split(", ")) for role, sid, actions, where in rows}
    wanted = {
        (role, s["Sid"].removeprefix(documents.SID)): (
            s["Action"],
            [resource.removeprefix("arn:aws:s3:::") for resource in s["Resource"]],
        )
        for role, document in documents.role_policies(buckets.names_of(SETTINGS)).items()
        for s in document["Statement"]
        if not role.endswith(".trust")
    }
    assert shown == wanted


def test_the_buckets_on_the_page_are_those_that_are_made() -> None:
    text = PAGE.read_text()
    assert [b.name for b in buckets.buckets_of(SETTINGS)] == [
        "illuvrse-memory-prod",
        "illuvrse-audit-archive-prod",
        "illuvrse-memory-prod-replica",
        "illuvrse-audit-archive-prod-replica",
    ]
    for bucket in buckets.buckets_of(SETTINGS):
        assert f"`{bucket.name}`" in text
