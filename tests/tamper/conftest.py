"""One real log for each process that runs the suite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memory_layer.ops import embedded
from tests.support.real_log import RealLog, real_log


@pytest.fixture(scope="session")
def log(cluster: embedded.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealLog]:
    with real_log(cluster, tmp_path_factory.mktemp("log")) as written:
        yield written
