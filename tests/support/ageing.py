"""Nodes whose time is over: no test waits for the hour that is the shortest time to live, and a row that is edited is refused."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from pathlib import Path
from unittest import mock

from memory_layer import config
from memory_layer.model import uuid7
from memory_layer.service.actions import nodes as node_actions
from memory_layer.service.commit import Change
from memory_layer.service.installation import open_installation
from tests.support.service import caller, patch_node


def expire(data: Path, dsn: str, tenant: str, *nodes: uuid.UUID | str) -> None:
    """Let the time to live of live nodes end now, through the one write path, with this installation's own key."""
    asyncio.run(_expire(data, dsn, tenant, [uuid.UUID(str(node)) for node in nodes]))


async def _expire(data: Path, dsn: str, tenant: str, nodes: list[uuid.UUID]) -> None:
    settings = config.load({}, database_url=dsn, embeddings_provider="none")
    # A service that the log tells of, as each that comes by the API: the verifier names an actor whom nothing introduced.
    who = caller(tenant, service="ageing", actor=uuid7(), draft=True)
    async with open_installation(settings, data, "committer") as opened:
        with mock.patch.object(node_actions, "expiry", lambda _ttl, now: now - dt.timedelta(seconds=1)):
            for node in nodes:
                await opened.committer.submit(Change(who, patch_node(node, ttl_seconds=3600)))
