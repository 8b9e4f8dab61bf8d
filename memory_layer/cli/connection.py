"""The client of a command, and what its errors mean in a shell."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from memory_layer import errors
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.client import AsyncMemoryClient, MemoryClient
    from memory_layer.client.errors import MemoryLayerClientError

SLOW = "It may be overloaded, or wait for something that hangs: /healthz at that address says, and its log."
START = 'Start one with `memoryctl up`, then run: eval "$(memoryctl env)"'


def client() -> MemoryClient:
    """The client that MEMORY_URL and MEMORY_TOKEN describe."""
    from memory_layer.client import MemoryClient

    return MemoryClient()


def async_client(connections: int) -> AsyncMemoryClient:
    """The same for bulk work: more patience with rate limits and restarts, as a long run should survive both."""
    from memory_layer.client import AsyncMemoryClient

    return AsyncMemoryClient(max_connections=connections, timeout=60.0, retries=6)


def explain(error: MemoryLayerClientError) -> tuple[str, int]:
    """One line (what, why, what to do) and the exit code."""
    if error.code == "UNREACHABLE":
        return f"{error.message} {START}", 3
    if error.code == "TIMEOUT":
        return f"{error.message} {SLOW}", 3
    if error.code == "INVALID_URL":
        return f"MEMORY_URL: {error.message}", 2
    if error.code == "UNAUTHENTICATED":
        return f'{error} Is MEMORY_TOKEN set and not expired? eval "$(memoryctl env)" sets it for a local `up`.', 4
    if error.code == "FORBIDDEN":
        return f"{error} A token with more scopes: memoryctl token issue --service NAME --scope S,...", 4
    text = str(error) if error.request_id is None else f"{error} [request {error.request_id}]"
    return text, _exit_codes().get(error.code, 3 if error.status >= 500 or error.status in (0, 429) else 2)


def default_owner() -> str:
    """The name of the user at the shell."""
    import getpass
    import os

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return f"uid-{os.getuid()}"


def json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """An option whose value is a JSON object."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"""{option} is no JSON: {error}. Quote it for the shell, as in {option} '{{"a": 1}}'."""
        ) from None
    if not isinstance(value, dict):
        raise UsageError(f"""{option} must be a JSON object, as in {option} '{{"a": 1}}'.""")
    return value


def _exit_codes() -> dict[str, int]:
    known = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.MemoryLayerError)]
    return {e.code: e.exit_code for e in known}
