"""Files to upload, and files to download, which appear only when they are complete and their hash is right."""

from __future__ import annotations

import contextlib
import hashlib
import mimetypes
import os
import secrets
from pathlib import Path, PurePosixPath
from typing import IO, Any

from memory_layer.client.errors import MemoryLayerClientError

CHUNK = 1 << 20


class Source:
    """A file to upload: a path (opened here) or a binary file object (left open).

    ``sha256`` is known before sending when the file can be read twice; from a pipe it is None, and the hash that was
    computed while sending is compared with the server's instead (``check``).
    """

    def __init__(
        self, path_or_file: str | os.PathLike[str] | IO[bytes], name: str | None, content_type: str | None
    ) -> None:
        if isinstance(path_or_file, (str, os.PathLike)):
            self.file: IO[bytes] = Path(path_or_file).open("rb")  # noqa: SIM115
            self.owned = True
        else:
            self.file, self.owned = path_or_file, False
        given = getattr(self.file, "name", None)
        self.name = name or (Path(given).name if isinstance(given, str) else None)
        guessed = mimetypes.guess_type(self.name)[0] if self.name else None
        self.content_type = content_type or guessed or "application/octet-stream"
        self.seekable = self.file.seekable()
        self.start = self.file.tell() if self.seekable else 0
        self.sha256: str | None = None
        self.size: int | None = None
        self._sent = hashlib.sha256()

    def hash(self) -> str | None:
        """Read once for the SHA-256 and size; None when the source cannot be read twice."""
        if self.seekable:
            digest, size = hashlib.sha256(), 0
            while chunk := self.file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
            self.sha256, self.size = digest.hexdigest(), size
            self.file.seek(self.start)
        return self.sha256

    def rewind(self) -> None:
        if self.seekable:
            self.file.seek(self.start)
        self._sent = hashlib.sha256()

    def read(self) -> bytes:
        chunk = self.file.read(CHUNK)
        self._sent.update(chunk)
        return chunk

    def check(self, answer: dict[str, Any]) -> None:
        """CHECKSUM_MISMATCH when the server stored other bytes than were sent."""
        if answer.get("sha256") != self._sent.hexdigest():
            raise MemoryLayerClientError(
                "CHECKSUM_MISMATCH",
                f"the server stored SHA-256 {answer.get('sha256')}, but {self._sent.hexdigest()} was sent: the bytes "
                "changed on the way. Upload again.",
                retryable=True,
            )

    def close(self) -> None:
        if self.owned:
            self.file.close()


class Target:
    """Where a download goes: written next to ``to`` under a temporary name, and renamed when its SHA-256 is right."""

    def __init__(self, artifact: dict[str, Any], to: str | os.PathLike[str] | IO[bytes]) -> None:
        self.sha256 = str(artifact["sha256"])
        self.artifact_id = str(artifact["artifactId"])
        self.digest = hashlib.sha256()
        self.path: Path | None = None
        self._temporary: Path | None = None
        if isinstance(to, (str, os.PathLike)):
            path = Path(to)
            # Only the last component of a stored name is used: the uploader chose it.
            name = PurePosixPath(str(artifact.get("name") or "").replace("\\", "/")).name
            self.path = path / (name if name not in ("", "..") else self.artifact_id) if path.is_dir() else path
            if self.path != path:  # a name that the uploader gave
                _require_free(self.path)
            self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
            self.file: IO[bytes] = self._temporary.open("xb")
        else:
            self.file = to
        self.restartable = self.path is not None

    def restart(self) -> None:
        self.digest = hashlib.sha256()
        if self.restartable:
            self.file.seek(0)
            self.file.truncate()

    def write(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.file.write(chunk)

    def finish(self) -> None:
        """Rename into place, or raise CHECKSUM_MISMATCH."""
        if self.digest.hexdigest() != self.sha256:
            raise MemoryLayerClientError(
                "CHECKSUM_MISMATCH",
                f"artifact {self.artifact_id} should have SHA-256 {self.sha256}, but the bytes that came have "
                f"{self.digest.hexdigest()}. They are damaged or were tampered with; nothing was kept.",
            )
        if self.path is not None and self._temporary is not None:
            self.file.flush()
            self.file.close()
            _publish(self._temporary, self.path)
            self._temporary = None

    def close(self) -> None:
        if self._temporary is not None:
            self.file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink()


def _require_free(path: Path) -> None:
    if os.path.lexists(path):
        raise MemoryLayerClientError(
            "CONFLICT",
            f"{path} is there already, and a download overwrites nothing. Name another file, or move that one away.",
        )


def _publish(temporary: Path, path: Path) -> None:
    """Give a complete file its name unless something has it: a link fails then, and a rename would not."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        _require_free(path)
        raise
    except OSError:  # a file system without links
        _require_free(path)
        temporary.replace(path)
    else:
        temporary.unlink()
