"""A product in a data folder of its own, gone afterwards."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.folders import make_data_folder
from tests.support.product import Product, start_product


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A data folder that is not there yet, and is removed at the end."""
    data = make_data_folder(disk=True)
    data.parent.chmod(0o711)  # under root the database's own account passes through
    try:
        yield data
    finally:
        shutil.rmtree(data.parent, ignore_errors=True)


@contextlib.contextmanager
def running() -> Iterator[Product]:
    """``memoryctl up`` with its defaults: durable, as a user has it."""
    with folder() as data:
        product = start_product(data)
        try:
            yield product
        finally:
            product.stop()
