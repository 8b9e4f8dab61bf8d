"""The sentences of the deployment guide that provisioning answers to: the ``source`` of its checks."""

from __future__ import annotations

from typing import Final

SIGNING_KEY: Final = "2: AUDIT_KMS_KEY_ID, KMS_ENDPOINT: signing + verification for audit chain."
QUEUE: Final = (
    "3.4: If using queues for vector writes, provision the managed queue (SQS, Pub/Sub) and set VECTOR_WRITE_QUEUE_URL."
)
INDEX: Final = (
    "3.2: Create collection/index: name kernel-memory-${SERVICE_ENV}, dimension of the embedding model, metric cosine."
)
REPLICAS: Final = "3.2: Create collection/index: replicas at least 2."
RIGHTS: Final = "3.2: Configure RBAC/API keys per environment."
BUCKETS: Final = "3.3: Bucket for primary artifacts, and one for immutable audit exports."
LOCK: Final = "3.3: Bucket must enable versioning + object-lock."
RETENTION: Final = "3.3: Object-lock (compliance mode, 365 days) for audit archives."
ENCRYPTION: Final = "3.3: Default encryption SSE-KMS."
LIFECYCLE: Final = "3.3: Stale artifacts to Glacier after 90 days unless legal_hold; audit: Instant Retrieval at 30, Deep Archive at 365 days."
POLICY: Final = "3.3: Enforce bucket policy that denies s3:DeleteObject*."
REPLICATION: Final = "3.3: Enable cross-region replication to an audit bucket with the same object-lock policy."
