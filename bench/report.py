"""A group of figures as a Markdown table that says where, when and how it was measured."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
_QUIET = 0.5  # load average above which somebody else is at work


class Skipped(Exception):
    """A group cannot be measured here; it says why."""


@dataclass(frozen=True, slots=True)
class Table:
    """``rows`` are (what, figure); ``about`` says on what data and how they were taken."""

    name: str
    rows: list[tuple[str, str]]
    about: str


def render(table: Table, arguments: str) -> str:
    """Markdown: the rows, then the circumstances."""
    lines = ["| what | figure |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in table.rows), ""]
    where = f"`python -m bench {arguments}`, {dt.datetime.now(dt.UTC):%Y-%m-%d}, {machine()}."
    return "\n".join([*lines, f"{where} {table.about}."])


def write(name: str, text: str, page: Path = PAGE) -> None:
    """Put the table between its markers; the rest of the page stays."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    found = page.read_text("utf-8")
    if begin not in found or end not in found:
        raise SystemExit(f"{page} has no place for it: put {begin} and {end} on lines of their own.")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    page.write_text(re.sub(pattern, lambda _: f"{begin}\n{text}\n{end}", found, flags=re.DOTALL), "utf-8")


def machine() -> str:
    """Cores, processor, memory, Python, and how busy the machine was already."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}, "
        f"load average when it began {LOAD[0]:.1f}{' (other work shared the machine)' if LOAD[0] > _QUIET else ''}"
    )


def spread(seconds: Sequence[float]) -> str:
    """Median and 95th percentile of latencies, in milliseconds."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return f"p50 {statistics.median(ordered) * 1000:.1f} ms, p95 {p95 * 1000:.1f} ms"


def _processor() -> str:
    try:
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        names = []
    return str(names[0]) if names else platform.processor() or platform.machine()


# Read before the benchmark's own load shows in it.
LOAD = os.getloadavg()
