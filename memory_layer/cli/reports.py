"""The one way an operator's report is printed: a table for people, tab-separated in a pipe, JSON with ``--json``.

It prints a report from its JSON form alone, so that one that was stored looks as it did when it was made.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

from memory_layer.cli import render

_STYLE: Final = {"pass": "green", "skip": "dim", "fail": "bold red"}
_WARNING: Final = "yellow"
_WIDTH: Final = 200  # characters of a fact; all of it is in the JSON


def show(report: Mapping[str, Any], *, as_json: bool) -> int:
    """Print a report; its exit code."""
    if as_json:
        render.data(report)
    else:
        render.pairs([(name, _fact(value)) for name, value in report["facts"].items()])
        _findings(report["findings"])
        render.line(verdict_line(report))
    return int(report["exit"])


def verdict_line(report: Mapping[str, Any]) -> str:
    """The last line of a report: verdict, exit code, and under which id it can be printed again."""
    return f"verdict {report['verdict']}   exit {report['exit']}   run {report['runId']}"


def _findings(findings: list[dict[str, Any]]) -> None:
    """What is not as it should be first; each with its hint beneath it, so that neither is squeezed into a column."""
    if not findings:
        return
    ordered = sorted(findings, key=_passed)
    if not sys.stdout.isatty():
        # How much it would matter says nothing of what passed.
        rows = [(f["status"], "" if _passed(f) else f["level"], f["id"], f["finding"], f["hint"]) for f in ordered]
        render.table(("status", "level", "id", "finding", "hint"), rows)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table("status", "id", "finding", box=SIMPLE_HEAD, pad_edge=False)
    for finding in ordered:
        status, text = finding["status"], render.clean(finding["finding"])
        style = _STYLE.get(status, _STYLE["fail"])
        if style == _STYLE["fail"] and finding["level"] != "error":
            style, status = _WARNING, finding["level"]
        cell = Text(text)
        if finding["hint"]:
            cell.append("\n" + render.clean(finding["hint"]), style="dim")
        drawn.add_row(Text(status, style=style), Text(render.clean(finding["id"])), cell)
    Console(file=sys.stdout).print(drawn)


def _passed(finding: Mapping[str, Any]) -> bool:
    return finding["status"] in ("pass", "skip")


def _fact(value: Any) -> Any:
    text = render.words(value)
    return text[: _WIDTH - 1] + "…" if isinstance(text, str) and len(text) > _WIDTH else text
