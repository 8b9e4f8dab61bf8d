"""What failed, kept in a file as it happens: for whoever sees only the end of a long output, or a run that was cut off.

A pytest plugin. With ``FAILURES_FILE`` in the environment each failure of a test, a fixture, a module or a worker process is appended
there: where, the error's own words, and the end of its traceback.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "FAILURES_FILE"
WORDS = 6  # lines of the error's message
END = 15  # lines of the traceback, counted from its end
WIDTH = 300  # characters of a line
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that the tests are reported to writes: xdist's workers have a ``workerinput``."""
    place = os.environ.get(VARIABLE)
    if place and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Keeper(Path(place)), "failures-file")


class _Keeper:
    def __init__(self, place: Path) -> None:
        self.place = place

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._keep(report.nodeid + ("" if report.when == "call" else f" ({report.when})"), report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._keep(f"{report.nodeid or '.'} (collection)", report)

    def _keep(self, where: str, report: Any) -> None:
        with self.place.open("a", encoding="utf-8") as file:
            file.write(excerpt(where, report.longrepr))


def excerpt(where: str, longrepr: Any) -> str:
    """One failure in at most ``1 + WORDS + 1 + END`` lines."""
    crash = getattr(longrepr, "reprcrash", None)
    lines = [f"* {where}"]
    if crash is not None:
        lines += [f"  {line}" for line in _short(crash.message)[:WORDS]] + [
            f"  at {crash.path}:{crash.lineno}; the end of it:"
        ]
    lines += [f"  | {line}" for line in _short(str(longrepr))[-END:]]
    return "\n".join(lines) + "\n"


def _short(text: str) -> list[str]:
    return [line[:WIDTH] for line in _COLOURS.sub("", text).splitlines() if line.strip()]
