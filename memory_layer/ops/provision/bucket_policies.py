"""The policies of buckets and roles as files, for the administrator who makes the roles: the product does not change IAM."""

from __future__ import annotations

import json
from pathlib import Path

from memory_layer.config import Settings
from memory_layer.errors import UsageError
from memory_layer.ops.provision.bucket_documents import bucket_policy, role_policies
from memory_layer.ops.provision.buckets import buckets_of, in_s3, names_of


def write(settings: Settings, folder: Path) -> list[Path]:
    """``bucket-<label>.json`` and ``role-<name>.json``. Files that are there are overwritten. Raises UsageError."""
    if not in_s3(settings):
        raise UsageError(
            "Artifacts lie in the data folder, which knows no policies. Set S3_BUCKET, S3_REGION or S3_ENDPOINT."
        )
    names = names_of(settings)
    documents = {f"role-{name}": document for name, document in role_policies(names).items()}
    for bucket in buckets_of(settings):
        documents[f"bucket-{bucket.label}"] = bucket_policy(names, bucket.kind, bucket.name)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, document in sorted(documents.items()):
            path = folder / f"{name}.json"
            path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise UsageError(f"--policies {folder} cannot be written: {error.strerror}.") from None
    return written
