"""Checkpoints in a folder: ``<folder>/<name of the log>/<size, 15 digits>``, each written once and never changed."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from memory_layer.audit.checkpoint import MAX_NOTE
from memory_layer.errors import AnchorUnavailable, Conflict

SIZE: Final = re.compile(r"[0-9]{15}")


def taken(name: str, size: int) -> Conflict:
    """What is refused where another note is kept under a size."""
    return Conflict(
        f"{name} keeps another checkpoint of {size} entries. Nothing was overwritten. Two checkpoints of one size by one log are proof that "
        "it showed two histories: keep both, and run `memoryctl audit verify --anchor` on each."
    )


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """An ``AnchorPlace`` in a directory. It is of use only on another machine or medium."""

    folder: Path

    @property
    def name(self) -> str:
        return str(self.folder)

    async def newest(self, origin: str) -> bytes | None:
        return await asyncio.to_thread(self._newest, self.folder / origin)

    async def keep(self, origin: str, size: int, note: bytes) -> None:
        await asyncio.to_thread(self._keep, self.folder / origin, size, note)

    async def close(self) -> None:
        """Nothing is held open."""

    def _newest(self, folder: Path) -> bytes | None:
        if not self.folder.is_dir():
            # Not made here: where a medium is not mounted, anchors would lie on the machine that they are to be kept apart from.
            raise AnchorUnavailable(f"The folder {self.folder} is not there. Make it, or mount what holds it.")
        try:
            names = sorted(path.name for path in folder.iterdir() if SIZE.fullmatch(path.name))
            return (folder / names[-1]).read_bytes()[: MAX_NOTE + 1] if names else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unavailable(self.folder, error) from error

    def _keep(self, folder: Path, size: int, note: bytes) -> None:
        self._newest(folder)  # raises where there is no such place
        draft = folder / f".{secrets.token_hex(8)}"
        final = folder / f"{size:015d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with draft.open("xb") as file:
                file.write(note)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, final)  # never overwrites
            except FileExistsError:
                if final.read_bytes() != note:
                    raise taken(self.name, size) from None
            except OSError:  # a file system without links
                if final.exists() and final.read_bytes() != note:
                    raise taken(self.name, size) from None
                draft.rename(final)
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise _unavailable(self.folder, error) from error
        finally:
            draft.unlink(missing_ok=True)


def _unavailable(folder: Path, error: OSError) -> AnchorUnavailable:
    return AnchorUnavailable(
        f"The folder {folder} cannot be used: {error.strerror}. Check its permissions and its room."
    )
