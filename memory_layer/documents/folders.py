"""From the paths on a command line to the files that are read, each under a name that the next run gives it again.

The name of a file is that of its folder and its path within it. A folder below the current one goes by its path from there, another by its
own name; how it was spelled (``./docs``, ``docs/``, an absolute path) makes no difference.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from memory_layer.documents.kinds import how_to_read, is_read_in_folders, lacks, require
from memory_layer.documents.passages import Source
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

_FOREIGN = ("CVS", "_darcs", "node_modules", "__pycache__", "venv", "site-packages", "bower_components")
_IGNORE_BYTES = 1024 * 1024  # of one .gitignore
_NAMED = 5  # examples of what is left out


@dataclass(frozen=True, slots=True)
class Root:
    """A path of the command line and its name."""

    path: Path
    name: str
    is_folder: bool

    def suffixes(self) -> list[str]:
        """What it may have been called when it was named from elsewhere; the shortest first."""
        parts = Path(os.path.abspath(self.path)).parts[1:]  # noqa: PTH100 - a link is not followed: it is named itself
        least = 1 if self.is_folder else 2
        return [encodable("/".join(parts[-n:])) for n in range(least, min(len(parts), 12) + 1)]


@dataclass(slots=True)
class LeftOut:
    """What of the folders is not read. ``kinds``: files by their suffix."""

    kinds: Counter[str] = field(default_factory=Counter)
    lacking: Counter[str] = field(default_factory=Counter)  # files that a library would read which is not installed
    links: list[str] = field(default_factory=list)  # to folders, and to nothing
    folders: list[str] = field(default_factory=list)  # of libraries and built files
    hidden: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # by a .gitignore
    closed: list[str] = field(default_factory=list)  # folders that cannot be read

    def __str__(self) -> str:
        parts = []
        if self.kinds:
            parts.append(
                f"{sum(self.kinds.values())} files of a kind that is not read ({_counted(self.kinds)}); a file that is named itself is"
            )
        if self.lacking:
            parts.append(
                f"{sum(self.lacking.values())} files ({_counted(self.lacking)}) for want of a library; {how_to_read()}"
            )
        lists = (
            ("links", self.links),
            ("folders of libraries or built files", self.folders),
            ("hidden files and folders", self.hidden),
            ("files and folders that a .gitignore names", self.ignored),
            ("folders that cannot be read", self.closed),
        )
        for what, names in lists:
            if names:
                parts.append(f"{len(names)} {what} ({some(names)})")
        return "; ".join(parts)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + ("" if len(names) <= _NAMED else f" and {len(names) - _NAMED} more")


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind or 'without a suffix'}" for kind, count in kinds.most_common(12))


def roots(arguments: Sequence[Path]) -> list[Root]:
    """The arguments with their names, in their order. Raises UsageError for one that is missing, or neither file nor folder."""
    for argument in arguments:
        if not argument.exists():
            raise UsageError(f"{argument} does not exist.")
        if not (argument.is_dir() or argument.is_file()):
            raise UsageError(f"{argument} is neither a file nor a folder.")
        if argument.is_file():
            require(argument)
    found: dict[str, Root] = {}
    places: dict[str, str] = {}
    for argument in arguments:
        folder, place = argument.is_dir(), os.path.abspath(argument)  # noqa: PTH100 - as above
        for name in _names(place, folder):
            if places.setdefault(name, place) == place:
                found[name] = Root(argument, name, folder)
                break
    return list(found.values())


def _names(place: str, folder: bool) -> Iterator[str]:
    """The name of a path; then, for when another path of the same command has it, longer ones."""
    here = Path.cwd()
    path = Path(place)
    if path == here:
        yield encodable(here.name)
    elif path.is_relative_to(here):
        yield encodable(path.relative_to(here).as_posix())
    parts = path.parts[1:]
    for count in range(1 if folder else 2, len(parts) + 1):
        yield encodable("/".join(parts[-count:]))
    yield encodable(place)


def find(found: Sequence[Root], left_out: LeftOut) -> Iterator[Source]:
    """The files that the roots stand for, in a stable order. What of a folder is not read is noted in ``left_out``."""
    for root in found:
        if root.is_folder:
            yield from _below(root, left_out)
        else:
            yield Source(root.path, root.name, named=True)


def _below(root: Root, left: LeftOut) -> Iterator[Source]:
    def closed(error: OSError) -> None:
        left.closed.append(encodable(str(error.filename)))

    rules = _Rules(root.path)
    for folder, folders, files in os.walk(root.path, onerror=closed):
        here = Path(folder)
        rules.enter(here)
        kept = []
        for name in sorted(folders):
            shown = encodable(f"{folder}/{name}")
            if name.startswith("."):
                left.hidden.append(shown)
            elif (here / name).is_symlink():
                left.links.append(shown)
            elif name in _FOREIGN:
                left.folders.append(shown)
            elif rules.ignore(here / name, folder=True):
                left.ignored.append(shown)
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            path = here / name
            inner = inner_name(root.name, path.relative_to(root.path))
            if name.startswith("."):
                left.hidden.append(inner)
            elif not path.is_file():
                left.links.append(inner)
            elif rules.ignore(path, folder=False):
                left.ignored.append(inner)
            elif is_read_in_folders(path):
                yield Source(path, inner, named=False)
            elif lacks(path.suffix.lower()):
                left.lacking[path.suffix.lower()] += 1
            else:
                left.kinds[path.suffix.lower()] += 1


class _Rules:
    """What the .gitignore files of a folder, of those below it and, within a repository, of those above it leave out."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - as above
        self._specs: list[tuple[Path, GitIgnoreSpec]] = []
        above = [self._root, *self._root.parents]
        top = next((n for n, folder in enumerate(above) if (folder / ".git").exists()), 0)
        for folder in reversed(above[1 : top + 1]):
            self._read(folder)
        if self.ignore(self._root, folder=True):  # it is named itself
            self._specs = []

    def enter(self, folder: Path) -> None:
        """Folders are entered from above to below, one branch after the other."""
        here = Path(os.path.abspath(folder))  # noqa: PTH100 - as above
        self._specs = [(base, spec) for base, spec in self._specs if here.is_relative_to(base)]
        self._read(here)

    def ignore(self, path: Path, *, folder: bool) -> bool:
        here = Path(os.path.abspath(path))  # noqa: PTH100 - as above
        for base, spec in reversed(self._specs):
            inner = here.relative_to(base).as_posix() + ("/" if folder else "")
            said = spec.check_file(inner).include
            if said is not None:
                return said
        return False

    def _read(self, folder: Path) -> None:
        from pathspec import GitIgnoreSpec

        try:
            with (folder / ".gitignore").open("rb") as file:
                lines = file.read(_IGNORE_BYTES).decode("utf-8", "surrogateescape").splitlines()
        except OSError:
            return
        good = []
        for line in lines:
            try:
                GitIgnoreSpec.from_lines([line])
            except ValueError:  # git passes over what is no pattern, too
                continue
            good.append(line)
        self._specs.append((folder, GitIgnoreSpec.from_lines(good)))


def inner_name(root: str, inner: Path | PurePosixPath) -> str:
    """The name of a file below a root."""
    return encodable(f"{root}/{inner.as_posix()}" if root else inner.as_posix())


def folders_of(name: str) -> list[str]:
    """The names of the folders that a file is below, the outermost first: each may be the root of another run."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def encodable(name: str) -> str:
    """File names are bytes; those that are no UTF-8 show their odd bytes as ``\\udcXX``. NFC, as macOS stores NFD."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode("utf-8"))
