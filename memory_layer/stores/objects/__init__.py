"""Object stores: write-once bytes in versions, in a directory of this machine or in S3."""

from __future__ import annotations

from pathlib import Path

from memory_layer.config import Settings
from memory_layer.errors import Forbidden
from memory_layer.stores.objects.files import open_file_store
from memory_layer.stores.protocols import ObjectStore


def open_objects(settings: Settings, data: Path) -> ObjectStore:
    """Where artifacts lie. Asks nothing of S3. Raises UsageError, PolicyRefused, ObjectStoreUnavailable (the directory)."""
    if not in_s3(settings):
        return open_file_store(data / "objects")
    from memory_layer.stores.objects.s3 import open_s3

    return open_s3(settings, artifact_bucket(settings), data)


def open_archive(settings: Settings, data: Path) -> ObjectStore:
    """Where the audit archive lies, with manifests and snapshots. Raises as ``open_objects``."""
    folder = archive_folder(settings, data)
    if folder is not None:
        return open_file_store(folder, "archive")
    from memory_layer.stores.objects.s3 import open_s3

    return open_s3(settings, archive_bucket(settings), data)


def archive_folder(settings: Settings, data: Path) -> Path | None:
    """The directory that the archive lies in; None where it is a bucket."""
    return data / "archive" if not in_s3(settings) and settings.archive_bucket is None else None


def open_eraser(settings: Settings, data: Path) -> ObjectStore:
    """The store of artifacts, opened to delete: for purges and erasure alone. Raises Forbidden without credentials for it."""
    if not in_s3(settings):
        return open_file_store(data / "objects", eraser=True)
    if not settings.s3_eraser_access_key or not settings.s3_eraser_secret:
        raise Forbidden(
            "Nothing can be deleted from S3: S3_ERASER_ACCESS_KEY and S3_ERASER_SECRET are not set. The role that writes may not "
            "delete; give this process the eraser's credentials."
        )
    from memory_layer.stores.objects.s3 import open_s3

    return open_s3(settings, artifact_bucket(settings), data, eraser=True)


def check(settings: Settings) -> None:
    """Raise UsageError or PolicyRefused where what is set for S3 cannot be used. Asks nothing of S3."""
    if not in_s3(settings) and settings.archive_bucket is None:
        return
    from memory_layer.stores.objects.s3_client import connect

    connect(settings).close()
    if settings.s3_eraser_access_key or settings.s3_eraser_secret:
        connect(settings, eraser=True).close()


def in_s3(settings: Settings) -> bool:
    """Whether artifacts lie in S3."""
    return any((settings.s3_bucket, settings.s3_endpoint, settings.s3_region))


def artifact_bucket(settings: Settings) -> str:
    return settings.s3_bucket or f"{settings.bucket_prefix}-memory-{settings.service_env}"


def archive_bucket(settings: Settings) -> str:
    return settings.archive_bucket or f"{settings.bucket_prefix}-audit-archive-{settings.service_env}"
