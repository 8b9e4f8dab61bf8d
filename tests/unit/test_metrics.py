"""The table of metrics is all there is, and the reference page has it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from memory_layer.telemetry import metrics

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
KINDS = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


def test_every_metric_is_a_row_of_the_table() -> None:
    made = {o._name: o for o in vars(metrics).values() if isinstance(o, tuple(KINDS.values()))}
    assert [row.name for row in metrics.TABLE] == list(made)
    for row in metrics.TABLE:
        metric = made[row.name]
        assert type(metric) is KINDS[row.kind]
        assert (metric._documentation, tuple(metric._labelnames)) == (row.meaning, row.labels)
    registered = {family.name for family in metrics.registry.collect() if not family.name.startswith("process_")}
    assert registered == set(made)


def test_every_metric_is_documented() -> None:
    page = PAGE.read_text("utf-8")
    for row in metrics.TABLE:
        assert f"| `{row.exported}` | {row.kind} | " in page
        assert row.meaning in page
        assert row.meaning.strip() == row.meaning != ""
