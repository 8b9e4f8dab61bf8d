"""The reference pages say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from memory_layer import errors
from memory_layer.api.operations import OPERATIONS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    subprocess.run(
        [sys.executable, DOCS / "generate.py", folder], check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    return folder


@pytest.mark.parametrize("page", ["reference/settings.md", "reference/metrics.md", "reference/cli.md", "openapi.json"])
def test_generated_pages_are_fresh(generated: Path, page: str) -> None:
    assert (DOCS / page).read_text("utf-8") == (generated / page).read_text("utf-8"), (
        "run `make docs` and commit the result"
    )


def test_every_call_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "api.md").read_text("utf-8")
    assert [o.name for o in OPERATIONS if f"{o.method} {re.sub(':[a-z]+}', '}', o.path)} " not in text] == []


def test_every_error_that_a_call_may_answer_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "api.md").read_text("utf-8")
    documented = dict(re.findall(r"^\| ([A-Z_]+) \| (\d+) \|", text, re.MULTILINE))
    answered = {error for o in OPERATIONS for error in o.errors}
    assert [e.code for e in answered if documented.get(e.code) != str(e.status)] == []
    known = {e.code: str(e.status) for e in vars(errors).values() if isinstance(e, type) and hasattr(e, "status")}
    assert {code: status for code, status in documented.items() if known.get(code) != status} == {}


def test_links_lead_somewhere() -> None:
    broken = []
    for page in [*DOCS.rglob("*.md"), *(DOCS.parent / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
        targets = [t for t in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", prose) if "{" not in t]
        broken += [f"{page.name}: {target}" for target in targets if not (page.parent / target).exists()]
    assert broken == []


def test_every_decision_is_in_the_index() -> None:
    index = (DOCS / "decisions" / "README.md").read_text("utf-8")
    assert [p.name for p in (DOCS / "decisions").glob("0*.md") if p.name not in index] == []
