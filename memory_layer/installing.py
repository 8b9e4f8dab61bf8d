"""What to run where a library is missing: from the place that this version was installed from, for an index may not have it.

The name that the package carries belongs to another product on the public index. Until ``PUBLISHED`` says otherwise, no hint of ours
may send anybody there.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from typing import Final
from urllib.parse import unquote, urlsplit

from memory_layer import __version__

DISTRIBUTION: Final = "memory-layer"  # as in pyproject.toml
PUBLISHED: Final = False  # whether an index gives our package under that name
CHECKOUT: Final = "PATH/TO/MEMORY-LAYER"  # its checkout or wheel, where this machine does not know better


def install(*extras: str) -> str:
    """The command that installs this package with these extras."""
    wanted = f"[{','.join(extras)}]" if extras else ""
    return f"pip install {shlex.quote(_source() + wanted)}"


def _source() -> str:
    if PUBLISHED:
        return DISTRIBUTION
    try:
        found = json.loads(importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
        url = urlsplit(str(found.get("url", "")))
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, AttributeError):
        return CHECKOUT
    return unquote(url.path) if url.scheme == "file" and url.path else CHECKOUT


def where_the_verifier_is_from() -> str:
    """For readers of evidence, who may have nothing of ours yet."""
    if PUBLISHED:
        return f"memoryctl comes with the package {DISTRIBUTION}; this folder was written by version {__version__}."
    return (
        f"memoryctl is the command of the Memory Layer; this folder was written by version {__version__}. Take it from the project\n"
        "itself, as a checkout or a wheel whose hash the log's keeper gives you, and not by its name from a package\n"
        f"index: there the name {DISTRIBUTION} belongs to another product."
    )
