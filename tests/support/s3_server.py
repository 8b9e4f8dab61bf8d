"""S3 servers on loopback: moto over HTTP in this process, and Ceph's RADOS gateway, which enforces locks.

moto proves calls and their shapes, conditional requests among them. It does not prove locks (it lets COMPLIANCE be shortened), does not
look at signatures or checksums, and dates every unfinished upload 2010. Ceph 16 proves locks, holds, versions, signatures and the
SHA-256 in them; it knows no If-None-Match, no x-amz-checksum, no cold classes, and forgets the lock of what comes in parts.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer

from memory_layer import config
from memory_layer.config import Settings

REGION = "us-east-1"
SCRIPT = Path(__file__).with_name("ceph-rgw.sh")


@dataclass(frozen=True)
class S3Server:
    """``access_key`` may do everything, as an administrator."""

    kind: str  # moto, ceph
    endpoint: str
    access_key: str
    secret: str

    def client(self, **more: Any) -> Any:
        """boto3 as anybody would use it, with the administrator's key."""
        plain = Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
        )
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret,
            config=plain,
            **more,
        )

    def make_bucket(self, *, locks: bool = True) -> str:
        """A bucket of its own, with versioning and Object Lock."""
        name = f"b-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name, ObjectLockEnabledForBucket=locks)
        return name

    def settings(self, bucket: str, **more: object) -> Settings:
        """What the product is told of it."""
        plain = {
            "s3_endpoint": self.endpoint,
            "s3_bucket": bucket,
            "archive_bucket": bucket,
            "s3_region": REGION,
            "s3_access_key": self.access_key,
            "s3_secret": self.secret,
            "s3_eraser_access_key": self.access_key,
            "s3_eraser_secret": self.secret,
        }
        return config.load({}, **(plain | more))


@contextlib.contextmanager
def running_moto() -> Iterator[S3Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    try:
        yield S3Server("moto", f"http://127.0.0.1:{port}", "moto-access", "moto-secret")
    finally:
        server.stop()


def ceph_missing() -> str | None:
    """Why Ceph cannot be started here, or None."""
    for program in ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin"):
        if shutil.which(program) is None:
            return f"{program} is not installed: as root, {SCRIPT.name} install gets it from Debian (.ci/run does)"
    return None


@contextlib.contextmanager
def running_ceph() -> Iterator[S3Server]:
    """Takes about 15 s. Its processes end with the context."""
    # The script's start is not tried again where a port was taken meanwhile: two free ones in a row are looked for.
    folder = Path(tempfile.mkdtemp(prefix="ceph-"))
    port = _two_free_ports()
    try:
        started = subprocess.run(
            ["bash", SCRIPT, "start", folder / "run", str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        said = dict(word.split("=", 1) for word in started.stdout.split() if "=" in word)
        assert started.returncode == 0, started.stdout + started.stderr
        yield S3Server("ceph", said["S3_ENDPOINT"], said["S3_ACCESS_KEY"], said["S3_SECRET"])
    finally:
        subprocess.run(["bash", SCRIPT, "stop", folder / "run"], capture_output=True, check=False, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _two_free_ports() -> int:
    """The upper one."""
    while True:
        with socket.socket() as upper, socket.socket() as lower:
            upper.bind(("127.0.0.1", 0))
            port = int(upper.getsockname()[1])
            try:
                lower.bind(("127.0.0.1", port - 1))
            except OSError:
                continue
            return port
