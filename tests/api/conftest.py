"""Clients of one running product."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.api.door import connect
from tests.support.product import Product


@pytest.fixture
def http(product: Product, tenant: str) -> Iterator[httpx2.Client]:
    """A client with every scope, for a tenant that no other test uses."""
    with connect(product, tenant) as client:
        yield client
