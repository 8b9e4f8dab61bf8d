"""``operate`` for tests: an installation as an operator's command has it, and runs where there is no event loop yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from memory_layer.config import Settings
from memory_layer.ops.operate import Work, operate
from memory_layer.ops.report import Report
from memory_layer.service.installation import Installation


def quiet(_line: str) -> None:
    """Says nothing."""


def installed(settings: Settings, folder: Path, dsn: str | None, say: Callable[[str], None] = quiet) -> Installation:
    """With nothing opened yet. ``dsn``: None where there is no database."""
    return Installation(msgspec.structs.replace(settings, database_url=dsn), folder, say=say)


def perform(
    installation: Installation, verb: str, arguments: Mapping[str, Any], work: Work, *, lock: str | None = None
) -> Report:
    async def once() -> Report:
        try:
            return await operate(installation, verb, arguments, work, lock=lock)
        finally:
            await installation.close()

    return asyncio.run(once())
