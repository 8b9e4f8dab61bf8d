"""The Python of the README and of the client's page runs as it stands, against the product."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.product import Product

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["README.md", "docs/reference/client.md"])
def test_the_code_of_a_page_runs(
    product: Product, tenant: str, page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MEMORY_URL", product.url)
    monkeypatch.setenv("MEMORY_TOKEN", product.issue(tenant=tenant))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        # Printed words are said in comments; what they say here is not compared, but something is printed.
        exec(compile(block, page, "exec"), {"__name__": "documented"})  # noqa: S102 - our own pages
        assert capsys.readouterr().out
