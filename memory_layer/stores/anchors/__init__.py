"""Places outside the installation that checkpoints are sent to: a folder, a bucket, an HTTPS endpoint, a git repository."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from memory_layer.config import Settings
from memory_layer.errors import UsageError
from memory_layer.stores.anchors.folder import FolderPlace
from memory_layer.stores.anchors.repository import LocalRepository, RemoteRepository
from memory_layer.stores.protocols import AnchorPlace

FORMS = (
    "a folder (/srv/anchors or file:///srv/anchors), s3://bucket/prefix, https://host/path, git:/srv/repository, or git+ssh://, git+https:// "
    "or git+file:// and the address of a repository"
)


def open_anchors(settings: Settings, data: Path) -> tuple[AnchorPlace, ...]:
    """The places of AUDIT_ANCHORS. Asks nothing of them. Raises UsageError."""
    given = (settings.audit_anchors or "").replace(",", " ").split()
    return tuple(open_anchor(settings, data, one) for one in dict.fromkeys(given))


def open_anchor(settings: Settings, data: Path, destination: str) -> AnchorPlace:
    """One place. ``data`` is the data folder. Raises UsageError, which shows no password."""
    try:
        parts = urlsplit(destination)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise _no_place(destination) from None
    if destination.startswith("/") or (parts.scheme == "file" and not host and parts.path.startswith("/")):
        return FolderPlace(Path(parts.path if parts.scheme == "file" else destination))
    if parts.scheme == "s3" and host and not parts.query and not parts.fragment:
        from memory_layer.stores.anchors.bucket import open_bucket

        return open_bucket(settings, data, parts.netloc, parts.path.strip("/"))
    if parts.scheme in ("http", "https") and host and not parts.fragment:
        from memory_layer.stores.anchors.web import WebPlace

        return WebPlace(destination)
    if parts.scheme == "git" and not host and parts.path.startswith("/"):
        return LocalRepository(Path(parts.path))
    if (
        parts.scheme in ("git+ssh", "git+https", "git+file")
        and parts.path.startswith("/")
        and (host or parts.scheme == "git+file")
    ):
        return RemoteRepository(destination.removeprefix("git+"))
    raise _no_place(destination)


def _no_place(destination: str) -> UsageError:
    shown = destination if "@" not in destination else f"{destination.partition(':')[0]}:..."
    return UsageError(f"{shown[:200]!r} is no place that checkpoints can be sent to (AUDIT_ANCHORS). It is {FORMS}.")
