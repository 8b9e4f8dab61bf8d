"""Which URL of a service may be used."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from memory_layer.config import Settings
from memory_layer.errors import PolicyRefused, UsageError


def service_url(variable: str, url: str, settings: Settings) -> str:
    """A service's URL. Raises UsageError when it is none, PolicyRefused when what is guarded would go over it in the clear."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError(f"{variable} is no URL such as https://host:port.")
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{variable} must not hold a user or password.")
    if settings.guarded and parts.scheme == "http" and not on_this_machine(host):
        raise PolicyRefused(
            f"{variable} begins with http://, so that anybody on the way could read and change what passes, and {settings.guarded} "
            "forbids that. Use https://."
        )
    return url.rstrip("/")


def on_this_machine(host: str) -> bool:
    """Whether a host is this machine by its loopback address or the name localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
