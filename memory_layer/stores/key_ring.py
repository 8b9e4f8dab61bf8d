"""The keys that this process may seal with. The log itself says which one seals (``audit_keys``, read under its lock)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from memory_layer.stores.protocols import Signer
from memory_layer.telemetry.logs import get_logger

log = get_logger("memory_layer.commit")

RELOAD_EVERY = 1.0  # seconds, at the most often


class KeyRing:
    """Signers by key id. Opened again when the log asks for a key that is not here: after a rotation it may be by now."""

    def __init__(self, signers: Sequence[Signer], reopen: Callable[[], Awaitable[Sequence[Signer]]]) -> None:
        self._signers = list(signers)
        self._reopen = reopen
        self._reloaded = float("-inf")

    @property
    def newest(self) -> Signer:
        """The key that the settings put first: what a new log begins with."""
        return self._signers[0]

    @property
    def key_ids(self) -> list[str]:
        return [signer.key_id for signer in self._signers]

    def find(self, key_id: str) -> Signer | None:
        return next((signer for signer in self._signers if signer.key_id == key_id), None)

    async def reload(self) -> None:
        """Open the keys again, at most once a second: who comes sooner waits, for the log may have changed its key twice in that
        time. Keys that cannot be opened now leave the ring as it is."""
        await asyncio.sleep(max(0.0, self._reloaded + RELOAD_EVERY - time.monotonic()))
        self._reloaded = time.monotonic()
        try:
            opened = await self._reopen()
        except Exception:
            log.exception("the keys could not be opened again")
            return
        old, self._signers = self._signers, list(opened)
        for signer in old:
            await signer.close()

    async def close(self) -> None:
        for signer in self._signers:
            await signer.close()
