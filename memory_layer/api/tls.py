"""TLS of the API, and which connections it takes: the server's certificate, client certificates, proxies in front.

The extension of a request's scope is ASGI's: https://asgi.readthedocs.io/en/latest/specs/tls.html.
"""

from __future__ import annotations

import ipaddress
import ssl
import time
from pathlib import Path
from typing import Final

from memory_layer.config import Settings
from memory_layer.errors import UsageError
from memory_layer.telemetry.logs import get_logger

LOOK_EVERY: Final = 10.0  # seconds, for another certificate in the same files
_VERSIONS: Final = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

log = get_logger("memory_layer.api.tls")


class ServerCertificate:
    """The context of new connections, which takes over what its files hold now."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Raises UsageError where the files are no certificate and its key."""
        self._files = (certificate, key)
        self._client_ca = client_ca
        self._seen = self._state()
        self._looked = time.monotonic()
        try:
            self.context = self._made()
        except (OSError, ssl.SSLError) as error:
            raise UsageError(_unusable(error, certificate, key, client_ca)) from error

    def refresh(self) -> None:
        """Read the files again if they changed. What does not fit together is left alone, and said in the log."""
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._made()  # to try: a context that was half changed could not be put back
            self.context.load_cert_chain(*self._files)
        except (OSError, ssl.SSLError) as error:
            log.error("the new certificate is not used", reason=_unusable(error, *self._files, self._client_ca))  # noqa: TRY400 - no bug
        else:
            log.info("another certificate is used from now on", file=str(self._files[0]))

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*self._files)
        if self._client_ca is not None:
            # Not CERT_REQUIRED: whatever asks for /livez alone has none, and others are to read why they are refused.
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(self._client_ca)
        return context

    def _state(self) -> tuple[tuple[int, int] | None, ...]:
        def stamp(path: Path) -> tuple[int, int] | None:
            try:
                found = path.stat()
            except OSError:
                return None
            return found.st_mtime_ns, found.st_ino

        return tuple(map(stamp, self._files))


def check(settings: Settings) -> None:
    """Whether what is set can be used. Raises UsageError."""
    open_certificate(settings)
    trusted_proxies(settings)


def open_certificate(settings: Settings) -> ServerCertificate | None:
    """What TLS_CERT, TLS_KEY and TLS_CLIENT_CA name; None: plain HTTP. Raises UsageError."""
    if settings.tls_cert is None and settings.tls_key is None:
        if settings.tls_client_ca is not None:
            raise UsageError(
                "TLS_CLIENT_CA is set without TLS_CERT and TLS_KEY: without TLS no client shows a certificate."
            )
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        there, lacking = ("TLS_CERT", "TLS_KEY") if settings.tls_cert else ("TLS_KEY", "TLS_CERT")
        raise UsageError(f"{there} is set without {lacking}. Set both, each the path of a PEM file.")
    authorities = None if settings.tls_client_ca is None else Path(settings.tls_client_ca)
    return ServerCertificate(Path(settings.tls_cert), Path(settings.tls_key), authorities)


def trusted_proxies(settings: Settings) -> tuple[Network, ...] | None:
    """The networks that connections may come from; None: any. Raises UsageError."""
    if settings.trusted_proxies is None:
        return None
    try:
        return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in settings.trusted_proxies.split(","))
    except ValueError as error:
        raise UsageError(
            f"TRUSTED_PROXIES: {error}. Give addresses or networks, such as 10.0.0.7,10.1.0.0/16."
        ) from None


def comes_from(address: str | None, networks: tuple[Network, ...]) -> bool:
    """Whether a peer is in one of the networks. This machine itself always is: what it sends crosses no network."""
    try:
        peer = ipaddress.ip_address(address or "")
    except ValueError:
        return address in (None, "")  # a local socket
    peer = getattr(peer, "ipv4_mapped", None) or peer
    return peer.is_loopback or any(peer in network for network in networks)


def extension(connection: ssl.SSLObject) -> dict[object, object]:
    """``scope["extensions"]["tls"]`` of a connection's requests."""
    certificate = connection.getpeercert(binary_form=True)
    cipher = connection.cipher()
    return {
        "server_cert": None,
        "client_cert_chain": [] if certificate is None else [ssl.DER_cert_to_PEM_cert(certificate)],
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": _VERSIONS.get(connection.version() or ""),
        "cipher_suite": None if cipher is None else cipher[0],
    }


def _unusable(error: Exception, certificate: Path, key: Path, client_ca: Path | None) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
    authorities = f", TLS_CLIENT_CA={client_ca}" if client_ca else ""
    return (
        f"TLS_CERT={certificate} and TLS_KEY={key}{authorities} cannot be used: {str(reason).replace('_', ' ').lower()}. Each is a "
        "PEM file that this process can read; the key is unencrypted and belongs to the first certificate."
    )
