"""Object stores for tests, opened as the product opens them, and what tests do to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from memory_layer import config
from memory_layer.config import Settings
from memory_layer.stores.objects import open_eraser, open_objects
from memory_layer.stores.protocols import ObjectStore
from tests.support.s3_server import S3Server

MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class Place:
    """Where objects lie: a directory below ``folder``, or a bucket."""

    folder: Path
    server: S3Server | None
    bucket: str | None

    @property
    def kind(self) -> str:
        """files, moto or ceph."""
        return "files" if self.server is None else self.server.kind

    @property
    def settings(self) -> Settings:
        return config.load({}) if self.server is None or self.bucket is None else self.server.settings(self.bucket)

    def open(self, *, eraser: bool = False) -> ObjectStore:
        return (open_eraser if eraser else open_objects)(self.settings, self.folder)

    def path(self, key: str) -> Path:
        """Where the directory keeps a content-addressed object."""
        prefix, _, sha256 = key.rpartition("/")
        return self.folder / "objects" / prefix / sha256[:2] / sha256

    def lose(self, key: str, version: str) -> None:
        """Delete a version behind the product's back."""
        if self.server is None:
            self.path(key).unlink()
        else:
            self.server.client().delete_object(Bucket=self.bucket, Key=key, VersionId=version)

    def overwrite(self, key: str, data: bytes) -> None:
        """Other bytes under the key: in the file, or as a newer version."""
        if self.server is None:
            self.path(key).chmod(0o600)
            self.path(key).write_bytes(data)
        else:
            self.server.client().put_object(Bucket=self.bucket, Key=key, Body=data)

    def mark_deleted(self, key: str) -> None:
        assert self.server is not None, "a directory has no delete markers"
        self.server.client().delete_object(Bucket=self.bucket, Key=key)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def content(store: ObjectStore, key: str, version: str, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([block async for block in store.read(key, version, start, stop)])
