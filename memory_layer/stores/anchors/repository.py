"""Checkpoints in a git repository: each is one commit that adds ``<name of the log>/<size, 15 digits>``.

Made by git's plumbing, so that neither hooks nor filters nor anything else that a repository configures is run on this machine; the
branch moves only from the commit that was read, and a push is never forced.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from memory_layer.audit.checkpoint import MAX_NOTE
from memory_layer.config import environment
from memory_layer.errors import AnchorUnavailable, DependencyUnavailable
from memory_layer.stores.anchors.folder import SIZE, taken

WITHIN: Final = 60.0  # seconds for one command
TRIES: Final = 3  # where somebody else pushed meanwhile
AUTHOR: Final = ("Memory Layer", "memory-layer@localhost")

# core.hooksPath: none of the repository's hooks; core.fsmonitor would name a program too.
_QUIET: Final = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.auto=0",
    "-c",
    "protocol.ext.allow=never",
)
_KEPT: Final = frozenset({"GIT_SSH_COMMAND", "GIT_SSH", "GIT_SSL_CAINFO", "GIT_CONFIG_GLOBAL", "GIT_ASKPASS"})
_FILTER: Final = re.compile(r"filter\.[^=]+\.(clean|smudge|process)")
_BRANCH: Final = re.compile(r"refs/heads/[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")


class LocalRepository:
    """An ``AnchorPlace`` in a repository on this machine, bare or with files: the commit is made on its current branch. To push it
    anywhere is its owner's business."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"git:{folder}"

    async def newest(self, origin: str) -> bytes | None:
        await self._demand()
        return await _newest(self.folder, origin)

    async def keep(self, origin: str, size: int, note: bytes) -> None:
        await self._demand()
        commit = await _commit(self.folder, self.name, origin, size, note)
        if commit is None or (await _git(self.folder, "rev-parse", "--is-bare-repository")).strip() == b"true":
            return
        # The files that lie there, and what git knows of them, follow the branch.
        top = Path((await _git(self.folder, "rev-parse", "--show-toplevel")).decode().strip())
        path = f"{origin}/{size:015d}"
        await asyncio.to_thread(_lay, top / path, note)
        blob = (await _git(self.folder, "rev-parse", f"{commit}:{path}")).decode().strip()
        await _git(
            self.folder, *await self._unfiltered(), "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}"
        )

    async def close(self) -> None:
        """Nothing is held open."""

    async def _unfiltered(self) -> list[str]:
        """Switches off the programs that the repository filters files by: git asks them of files that changed within the last second."""
        named = await _git(self.folder, "config", "--null", "--list", "--name-only", whole=True)
        programs = [name for name in named.decode().split("\0") if _FILTER.fullmatch(name)]
        return [word for name in programs for word in ("-c", f"{name}=")]

    async def _demand(self) -> None:
        if not self.folder.is_dir():
            raise AnchorUnavailable(f"There is no repository at {self.folder}. Make one with: git init {self.folder}")
        await _git(self.folder, "rev-parse", "--git-dir")


class RemoteRepository:
    """An ``AnchorPlace`` in a repository elsewhere: a shallow copy is made, the commit added and pushed. Credentials are git's own
    (ssh agent, credential helper), or stand in the URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._url = url
        self.name = "git+" + urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        # Of a repository on this machine git would run the hooks here.
        quiet = "--receive-pack=git -c core.hooksPath=/dev/null -c core.fsmonitor=false receive-pack"
        self._receiver = (quiet,) if parts.scheme == "file" else ()
        self._seen: tuple[bytes, str, bytes | None] | None = (
            None  # what the branches pointed at, of which log, and what was there
        )

    async def newest(self, origin: str) -> bytes | None:
        heads = await self._heads()
        if self._seen is not None and self._seen[:2] == (heads, origin):
            return self._seen[2]
        async with self._copy() as folder:
            found = await _newest(folder, origin)
        self._seen = heads, origin, found
        return found

    async def keep(self, origin: str, size: int, note: bytes) -> None:
        for number in range(TRIES):
            async with self._copy() as folder:
                commit = await _commit(folder, self.name, origin, size, note)
                if commit is None:
                    return
                branch = await _branch(folder)
                try:
                    await _git(
                        folder,
                        "push",
                        "--quiet",
                        "--no-verify",
                        *self._receiver,
                        "origin",
                        f"{commit}:{branch}",
                        named=self.name,
                    )
                    return
                except AnchorUnavailable:
                    # Somebody else may have pushed meanwhile; then the branch is elsewhere by now.
                    if number == TRIES - 1:
                        raise

    async def close(self) -> None:
        """Nothing is held open."""

    async def _heads(self) -> bytes:
        return await _git(None, "ls-remote", "--quiet", self._url, "HEAD", "refs/heads/*", named=self.name)

    @contextlib.asynccontextmanager
    async def _copy(self) -> AsyncIterator[Path]:
        """A bare copy of the newest commit, gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="memory-anchor-") as name:
            folder = Path(name) / "copy"
            await _git(
                None,
                "clone",
                "--quiet",
                "--bare",
                "--depth",
                "1",
                "--template=",
                self._url,
                str(folder),
                named=self.name,
            )
            yield folder


def _lay(path: Path, note: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(note)


async def _newest(folder: Path, origin: str) -> bytes | None:
    if await _tip(folder) is None:
        return None
    listed = await _git(folder, "ls-tree", "--name-only", "-z", "HEAD", f"{origin}/", whole=True)
    names = sorted(name for path in listed.decode().split("\0") if SIZE.fullmatch(name := path.rpartition("/")[2]))
    return (await _git(folder, "cat-file", "blob", f"HEAD:{origin}/{names[-1]}"))[: MAX_NOTE + 1] if names else None


async def _commit(folder: Path, name: str, origin: str, size: int, note: bytes) -> str | None:
    """Add a note to the branch that HEAD names; the commit, None where the note is there already. Raises Conflict where another is."""
    path, tip, branch = f"{origin}/{size:015d}", await _tip(folder), await _branch(folder)
    blob = (await _git(folder, "hash-object", "-w", "--no-filters", "--stdin", given=note)).decode().strip()
    if tip is not None:
        there = await _git(folder, "ls-tree", "-z", tip, path, whole=True)
        if there:
            if f" {blob}\t" not in there.decode():
                raise taken(name, size)
            return None
    with tempfile.TemporaryDirectory(prefix="memory-anchor-") as scratch:
        own = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        if tip is not None:
            await _git(folder, "read-tree", tip, environ=own)
        await _git(folder, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", environ=own)
        tree = (await _git(folder, "write-tree", environ=own)).decode().strip()
    parents = () if tip is None else ("-p", tip)
    commit = (
        (await _git(folder, "commit-tree", tree, *parents, "-m", f"Checkpoint of {origin}: {size} entries"))
        .decode()
        .strip()
    )
    await _git(folder, "update-ref", branch, commit, tip or "0" * len(commit))
    return commit


async def _tip(folder: Path) -> str | None:
    """The commit of HEAD; None in a repository without one."""
    try:
        return (await _git(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")).decode().strip() or None
    except AnchorUnavailable:
        return None


async def _branch(folder: Path) -> str:
    branch = (await _git(folder, "symbolic-ref", "HEAD")).decode().strip()
    if _BRANCH.fullmatch(branch) is None:
        raise AnchorUnavailable("HEAD of the repository is on no branch. Check one out there.")
    return branch


async def _git(
    folder: Path | None,
    *words: str,
    given: bytes | None = None,
    environ: dict[str, str] | None = None,
    named: str | None = None,
    whole: bool = False,
) -> bytes:
    """What git says on its standard output, no more than a note unless ``whole``. Raises DependencyUnavailable without git, AnchorUnavailable
    where it fails."""
    binary = shutil.which("git", path=environment().get("PATH"))
    if binary is None:
        raise DependencyUnavailable(
            "git is not installed, and a checkpoint is to be sent to a git repository (AUDIT_ANCHORS). Install git, or name another place."
        )
    verb = next(word for word in words if not word.startswith("-") and "=" not in word)
    where = () if folder is None else ("-C", str(folder))
    about = {
        "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "file:https:ssh", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C",
        "GIT_AUTHOR_NAME": AUTHOR[0], "GIT_AUTHOR_EMAIL": AUTHOR[1], "GIT_COMMITTER_NAME": AUTHOR[0], "GIT_COMMITTER_EMAIL": AUTHOR[1],
    }  # fmt: skip
    inherited = {name: value for name, value in environment().items() if not name.startswith("GIT_") or name in _KEPT}
    process = await asyncio.create_subprocess_exec(
        binary, *_QUIET, *where, *words,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"GIT_SSH_COMMAND": "ssh -oBatchMode=yes"} | inherited | about | (environ or {}),
    )  # fmt: skip
    try:
        async with asyncio.timeout(WITHIN):
            out, err = await process.communicate(given)
    except TimeoutError:
        raise AnchorUnavailable(f"git {verb} at {named or folder} did not end within {WITHIN:g} s.") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        # What git says of a remote may repeat its URL, password and all.
        reason = (
            " ".join(err.decode("utf-8", "replace").split())[-300:]
            if named is None
            else "see whether git can do it by hand"
        )
        raise AnchorUnavailable(f"git {verb} failed at {named or folder}: {reason or f'exit {process.returncode}'}.")
    return out if whole else out[: MAX_NOTE + 1]
