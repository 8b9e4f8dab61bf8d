"""Signatures of bodies whose SHA-256 is known already, so that it is not computed once more for each request.

A signature covers the hash of the body (x-amz-content-sha256), which botocore computes by reading it. The same hash is in the header
x-amz-checksum-sha256 by then. A body that is not what the header says is refused by the server, for either of the two.
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import botocore.auth

_HEADER: Final = "x-amz-checksum-sha256"
_NAME: Final = "memory-layer-s3v4"
_OPERATIONS: Final = ("PutObject", "UploadPart")


class _KnownBody(botocore.auth.S3SigV4Auth):  # type: ignore[misc]  # botocore has no types
    """S3's signature, version 4, with the hash that the checksum's header holds."""

    def payload(self, request: Any) -> str:
        known = request.headers.get(_HEADER)
        if known is None or not self._should_sha256_sign_payload(request):
            return str(super().payload(request))
        try:
            return base64.b64decode(known, validate=True).hex()
        except binascii.Error:
            return str(super().payload(request))


def use_known_hashes(client: Any) -> None:
    """Let a client of S3 sign so. botocore looks signers up by name in one table, in which this one gets a name of its own."""
    botocore.auth.AUTH_TYPE_MAPS[_NAME] = _KnownBody

    def choose(signature_version: Any, **_: Any) -> str | None:
        return _NAME if signature_version in ("s3v4", "v4") else None

    for operation in _OPERATIONS:
        client.meta.events.register(f"choose-signer.s3.{operation}", choose)
