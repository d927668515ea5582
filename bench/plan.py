"""What 100 billion log rows and 1 billion items would take: the table of docs/scale.md.

    python -m bench.plan [--rows 1e11] [--items 1e9] [--machines 100]

Nothing is measured here. Every constant is read from the recorded runs of `bench.constants` in
bench/RESULTS.md, quick runs left out; of a constant that was measured twice the newest counts.
Amounts are multiplied by constants and divided by cores, so all that comes out is extrapolated.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

from bench.harness import RESULTS

# cluster.yaml's node for data, us-east-1, on demand. The price is remembered, not looked up.
MACHINE, CORES, DOLLARS = "m6id.4xlarge", 16, 0.9492
BUSY = 0.7  # assumed share of the time in which a core works on tasks
DAYS = 30  # over which the logs grow
# phases that a run with edges does for everything so far, and not for its new days alone
_AGAIN = ("counts", "tags", "tag-counts", "edges", "nodes", "targets", "graph", "publish")
GRAPHS = {"once": [DAYS], "every week": [7, 14, 21, 28, DAYS], "every day": range(1, DAYS + 1)}
_VIDEO = "video of 8 s, 640 x 360, with sound"
_PICTURE, _SOUND = "picture, 1280 x 960", "sound of 10 s"
_MIX = {_VIDEO: 0.5, _PICTURE: 0.25, _SOUND: 0.25}  # assumed share of items with such a file
_DECODE = "decode, scale, compress, log-mel, CPU ms"
_HASHES = "hashes of what is kept, CPU ms"


class Step(NamedTuple):
    """A step, how much of it there is, and what one of that costs."""

    name: str
    amount: float
    seconds: float  # of a core, for one of the amount

    @property
    def core_hours(self) -> float:
        return self.amount * self.seconds / 3600


def constants(text: str) -> dict[str, float]:
    """Figures of the recorded full runs of bench.constants, newest last and so the one kept."""
    found: dict[str, float] = {}
    for entry in re.split(r"^## ", text, flags=re.MULTILINE):
        if entry.startswith("constants,") and "--quick" not in entry:
            for what, value in re.findall(r"^\| (.+?) \| (-?\d[-+.e\d]*) \|", entry, re.MULTILINE):
                found[what] = float(value)
    return found


def steps(found: dict[str, float], rows: float, items: float) -> list[Step]:
    """All steps; of one whose constant has not been measured the seconds are NaN."""
    plain, graph = "logs to sequences: all phases", "logs to graph: all phases"
    a_million = ", CPU s a million rows"
    events = rows * found.get("events kept of a row", math.nan)
    wanted: list[tuple[str, str, float, float]] = [
        ("logs to sequences", plain + a_million, rows, 1e-6),
        *((f"edges and graph, {how}", graph + a_million, rows, 1e-6) for how in GRAPHS),
        ("sequences to rows", "sequences to rows, CPU s a million events", events, 1e-6),
        *((f"media: {kind}", f"{kind}: {_DECODE}", items * s, 1e-3) for kind, s in _MIX.items()),
        *(
            (f"hashes: {kind}", f"{kind}: {_HASHES}", items * _MIX[kind], 1e-3)
            for kind in (_VIDEO, _PICTURE)
        ),
        ("content rows", "tables to content rows with Ray, CPU ms an item", items, 1e-3),
        ("embedding, demo's encoder", "encoder of content-demo, CPU ms an item", items, 1e-3),
        ("embedding, base's encoder", "encoder of content-base, CPU ms an item", items, 1e-3),
        ("index", "index of 1,000,000 vectors: build, CPU us a vector", items, 1e-6),
    ]
    made: list[Step] = []
    for name, constant, amount, unit in wanted:
        cost = found.get(constant, math.nan)
        if constant.startswith(graph):
            cost -= found.get(plain + a_million, math.nan)
            again = sum(
                found.get(f"logs to graph: {phase}{a_million}", math.nan) for phase in _AGAIN
            )
            cost += again * (passes(GRAPHS[name.partition(", ")[2]]) - 1)
        made.append(Step(name, amount, cost * unit))
    return made


def passes(days: Iterable[int]) -> float:
    """How many times all rows are gone through by runs after so many days."""
    return sum(days) / DAYS


def table(made: list[Step], machines: int) -> str:
    """The steps in Markdown."""
    lines = [
        f"| step | amount | CPU s for a million | core hours | hours on {machines} machines | $ |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for step in made:
        if math.isnan(step.seconds):
            lines.append(f"| {step.name} | {step.amount:.3g} | not measured | | | |")
            continue
        hours = step.core_hours / BUSY / CORES
        lines.append(
            f"| {step.name} | {step.amount:.3g} | {_short(step.seconds * 1e6)} | "
            f"{step.core_hours:,.0f} | {hours / machines:,.1f} | {hours * DOLLARS:,.0f} |"
        )
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plan", description=__doc__)
    parser.add_argument("--rows", type=float, default=1e11, help="of logs")
    parser.add_argument("--items", type=float, default=1e9)
    parser.add_argument("--machines", type=int, default=100, help=f"{MACHINE}, {CORES} cores")
    options = parser.parse_args(argv)
    found = constants(RESULTS.read_text(encoding="utf-8"))
    print(table(steps(found, options.rows, options.items), options.machines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
