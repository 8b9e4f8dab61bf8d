"""Write the reference pages that come from the code: settings, metrics, commands, the OpenAPI document. Run by `make docs`.

`python docs/generate.py FOLDER` writes them there instead, for comparing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from memory_layer import config
from memory_layer.api.openapi import document
from memory_layer.cli.app import COMMANDS, run
from memory_layer.telemetry.metrics import TABLE

HERE = Path(__file__).parent
WIDTH = 100
ACROSS = {
    "all": "each by itself, label `pid`",
    "max": "the largest",
    "livemax": "the largest of those that run",
    "mostrecent": "the newest",
    "livemostrecent": "the newest of those that run",
}


def settings() -> str:
    """docs/reference/settings.md"""
    lines = [
        "# Settings",
        "",
        "Environment variables, or `NAME_FILE` pointing at a mounted file. An unknown variable that begins as these do is a warning",
        "at start, a malformed value an error that names it. Secrets are never printed. Generated from `memory_layer/config.py` by `make docs`.",
        "",
        "| variable | default | values | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, default, values, meaning, secret in config.table():
        lines.append(f"| `{name}` | {default} | {values} | {meaning}{' (secret)' if secret else ''} |")
    lines += [
        "",
        "Of clients: `MEMORY_URL` (default `http://127.0.0.1:4300`) and `MEMORY_TOKEN`, as `memoryctl env` prints them.",
        "",
    ]
    return "\n".join(lines)


def metrics() -> str:
    """docs/reference/metrics.md"""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` of the API, and of a worker with `memoryctl worker --metrics-port`, in Prometheus's text format; `process_*` says what",
        "each process uses. A histogram has three series: `_bucket`, `_sum` and `_count`. With `--processes` one port answers for all of",
        "them: counters and histograms are sums, and the fourth column says what a gauge is then. Generated from",
        "`memory_layer/telemetry/metrics.py` by `make docs`.",
        "",
        "| metric | kind | labels | of several processes | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for metric in TABLE:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        meaning = metric.meaning
        if metric.buckets:
            meaning += f"; buckets up to {', '.join(f'{bound:g}' for bound in metric.buckets)}"
        across = ACROSS[metric.across] if metric.across else "the sum"
        lines.append(f"| `{metric.exported}` | {metric.kind} | {labels} | {across} | {meaning} |")
    return "\n".join([*lines, ""])


def commands() -> str:
    """docs/reference/cli.md"""
    parts = [
        "# memoryctl",
        "",
        "Data goes to stdout, talk to stderr; `--json` everywhere; progress bars only on a terminal. Exit codes: 0 fine, 1 findings,",
        "2 usage, 3 a dependency is unavailable, 4 refused by policy, 5 lock held; `audit verify` has its own, below. Generated from",
        "the commands' own help by `make docs`.",
        "",
        _help(),
    ]
    for name, _, _, _ in COMMANDS:
        parts += _chapter(name)
    return "\n".join(parts)


def _chapter(*words: str) -> list[str]:
    """A command and, below it, those that it has."""
    text = _help(*words)
    parts = [f"{'#' * (len(words) + 1)} {' '.join(words)}", "", text]
    for verb in _verbs(text):
        parts += _chapter(*words, verb)
    return parts


def openapi() -> str:
    """docs/openapi.json"""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


PAGES = {
    "reference/settings.md": settings,
    "reference/metrics.md": metrics,
    "reference/cli.md": commands,
    "openapi.json": openapi,
}


def _help(*words: str) -> str:
    os.environ["COLUMNS"] = str(WIDTH)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run([*words, "--help"])
    text = "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())
    return f"```\n{text}\n```\n"


def _verbs(text: str) -> list[str]:
    """The sub-commands that a help text lists in its Commands box."""
    found, inside = [], False
    for line in text.splitlines():
        if line.startswith("╭─ Commands"):
            inside = True
        elif line.startswith("╰"):
            inside = False
        elif inside and line.startswith("│ ") and line[2].isalpha():
            found.append(line[2:].split()[0])
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, make in PAGES.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), "utf-8")
        print(path)
