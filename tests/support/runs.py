"""``operate`` for tests that have no event loop of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from memory_layer.ops.operate import Place, Work, operate
from memory_layer.ops.report import Report


def perform(place: Place, verb: str, arguments: Mapping[str, Any], work: Work, *, lock: str | None = None) -> Report:
    return asyncio.run(operate(place, verb, arguments, work, lock=lock))
