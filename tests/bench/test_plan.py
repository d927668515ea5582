"""The plan is arithmetic on recorded constants: it finds them, and leaves gaps as gaps."""

from __future__ import annotations

import pytest

from bench.plan import GRAPHS, constants, passes, steps, table

_RECORD = """# Results

## constants, 2026-01-01, aaaaaaa

`python -m bench.constants --quick`; a machine; 1 s

| what | value | bar | holds |
| --- | ---: | ---: | --- |
| events kept of a row | 9 |  |  |

## constants, 2026-01-02, bbbbbbb

`python -m bench.constants`; a machine; 1 s

| what | value | bar | holds |
| --- | ---: | ---: | --- |
| events kept of a row | 0.5 |  |  |
| sequences to rows, CPU s a million events | 1.5 |  |  |
| tables to content rows with Ray, CPU ms an item | 1e+01 |  |  |

## constants, 2026-01-03, ccccccc

`python -m bench.constants --only behaviour`; a machine; 1 s

| what | value | bar | holds |
| --- | ---: | ---: | --- |
| sequences to rows, CPU s a million events | 3.6 |  |  |

## memory, 2026-01-04, ddddddd

| what | value | bar | holds |
| --- | ---: | ---: | --- |
| events kept of a row | 7 |  |  |
"""


def test_the_newest_full_run_of_constants_counts() -> None:
    assert constants(_RECORD) == {
        "events kept of a row": 0.5,
        "sequences to rows, CPU s a million events": 3.6,
        "tables to content rows with Ray, CPU ms an item": 10.0,
    }


def test_amounts_times_constants_and_gaps_stay_gaps() -> None:
    made = {step.name: step for step in steps(constants(_RECORD), rows=2e9, items=3.6e8)}
    # half of 2e9 rows are events, 3.6 CPU s a million of them
    assert made["sequences to rows"].core_hours == pytest.approx(1.0)
    assert made["content rows"].core_hours == pytest.approx(1000.0)
    text = table(list(made.values()), 10)
    # 1000 core hours over 10 machines of 16 cores that are busy .7 of the time
    assert "| content rows | 3.6e+08 | 10,000 | 1,000 | 8.9 | 85 |" in text
    assert "| logs to sequences | 2e+09 | not measured | | | |" in text


def test_a_graph_goes_through_all_rows_so_far() -> None:
    assert [passes(days) for days in GRAPHS.values()] == pytest.approx([1.0, 10 / 3, 15.5])
    phases = ["counts", "tags", "tag-counts", "edges", "nodes", "targets", "graph", "publish"]
    costs = dict.fromkeys([f"logs to graph: {x}, CPU s a million rows" for x in phases], 2.0)
    costs["logs to graph: all phases, CPU s a million rows"] = 20.0
    costs["logs to sequences: all phases, CPU s a million rows"] = 1.0
    made = {step.name: step.seconds * 1e6 for step in steps(costs, rows=1e9, items=1)}
    assert made["edges and graph, once"] == pytest.approx(19.0)
    assert made["edges and graph, every week"] == pytest.approx(19 + 16 * 7 / 3)
    assert made["edges and graph, every day"] == pytest.approx(19 + 16 * 14.5)
