"""How several processes share the suite (``--dist loadfile``): how many there are, and that the files that take longest go first.

A file is not divided, so a long one that is begun last leaves the other processes without work until it ends.
"""

from __future__ import annotations

import os

import pytest

# By the CPU that they take, servers and commands included. Whatever is not named comes after them, as it was collected.
LONG = (
    "tests/test_up.py",
    "tests/test_main_job.py",
    "tests/tamper/test_catalogue.py",
    "tests/cli/test_generations.py",
    "tests/tamper/test_offline.py",
    "tests/cli/test_rotate.py",
    "tests/api/test_openapi.py",
    "tests/tamper/test_operator.py",
    "tests/contract/test_vectors.py",
    "tests/cli/test_ingest.py",
    "tests/drills/test_drill.py",
    "tests/integration/test_embedded.py",
    "tests/tamper/test_database.py",
    "tests/integration/test_verify.py",
    "tests/tamper/test_bombs.py",
    "tests/integration/test_checkpoints.py",
    "tests/drills/test_reconcile.py",
    "tests/unit/test_client_results.py",
    "tests/cli/test_provision_buckets.py",
    "tests/contract/test_signers.py",
    "tests/tamper/test_archive.py",
    "tests/test_rollback.py",
    "tests/drills/test_snapshot.py",
    "tests/tamper/test_log_authority.py",
    "tests/integration/test_retention.py",
    "tests/contract/test_vector_filters.py",
    "tests/api/test_bad_input.py",
    "tests/integration/test_rotate.py",
    "tests/integration/test_worker.py",
    "tests/unit/test_filters.py",
    "tests/cli/test_freeze.py",
    "tests/api/test_outage.py",
    "tests/api/test_database_outages.py",
    "tests/test_up_s3.py",
    "tests/integration/test_commit.py",
    "tests/cli/test_artifact_commands.py",
    "tests/integration/test_archive.py",
    "tests/integration/test_worker_process.py",
    "tests/integration/test_queues.py",
    "tests/contract/test_pgvector_spaces.py",
    "tests/unit/test_client.py",
    "tests/integration/test_generations.py",
    "tests/tamper/test_schema_drift.py",
    "tests/integration/test_schedule.py",
    "tests/integration/test_export.py",
    "tests/contract/test_notifiers.py",
    "tests/integration/test_signer_guards.py",
    "tests/integration/test_archive_s3.py",
    "tests/tamper/test_log_end.py",
    "tests/tamper/test_rollback.py",
    "tests/test_processes.py",
    "tests/integration/test_migrations.py",
    "tests/api/test_waiting.py",
    "tests/integration/test_runs.py",
    "tests/cli/test_audit_verify.py",
    "tests/tamper/test_laundering.py",
    "tests/cli/test_archive_commands.py",
    "tests/api/test_nodes.py",
)
_PLACE = {name: place for place, name in enumerate(LONG)}


def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``: three for two CPUs, for a test process often waits for a server or a command."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cpus + cpus // 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker process of xdist alone: one process takes the time that it takes."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _PLACE.get(item.nodeid.partition("::")[0], len(LONG)))
