"""What every benchmark shares: figures with bars, the table, the JSON line, the record.

`python -m bench.NAME [--quick]` prints a table for people and, as its last line, one JSON object
{name, commit, hardware, figures: [{what, value, bar, holds}]}; it exits with 1 when a bar falls
short. `--record` appends the table to bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import psutil

RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True)
class Figure:
    """One measured value, and the bar it is held to; `bar` None is for information only."""

    what: str
    value: float
    bar: float | None = None
    at_most: bool = False  # the bar is a ceiling instead of a floor

    @property
    def holds(self) -> bool:
        if self.bar is None:
            return True
        return self.value <= self.bar if self.at_most else self.value >= self.bar


@dataclass
class Report:
    """Figures and remarks of one benchmark run."""

    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    table: list[str] = field(default_factory=list)  # lines of Markdown of the benchmark's own

    def add(self, what: str, value: float, bar: float | None = None, at_most: bool = False) -> None:
        # NumPy's floats compare to bools of its own, which JSON does not take
        self.figures.append(Figure(what, float(value), bar, at_most))
        print(f"   {what}: {value:.4g}", flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"   {text}", flush=True)


def hardware() -> str:
    """Processor, cores, memory and accelerator of this machine, in words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores {model}, {memory:.0f} GB, {_accelerator()}"


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def commit() -> str:
    """Short hash of the checked-out commit, with a + when the tree, results apart, differs."""
    git = ["git", "-C", str(RESULTS.parent)]
    changes = ["status", "--porcelain", "--", ":/", f":!{RESULTS.name}"]
    done = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, *changes], capture_output=True, text=True)
    return (done.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def table(figures: list[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| what | value | bar | holds |", "| --- | ---: | ---: | --- |"]
    for figure in figures:
        sign = "≤" if figure.at_most else "≥"
        bar = "" if figure.bar is None else f"{sign} {figure.bar:g}"
        holds = "" if figure.bar is None else ("yes" if figure.holds else "**no**")
        lines.append(f"| {figure.what} | {figure.value:.4g} | {bar} | {holds} |")
    return "\n".join(lines)


def main(
    name: str,
    about: str | None,
    measure: Callable[[argparse.Namespace, Report], None],
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Parse the shared flags, run `measure`, print the table and the JSON line, and exit."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    parser.add_argument("--record", action="store_true", help="append to bench/RESULTS.md")
    if arguments is not None:
        arguments(parser)
    options = parser.parse_args()
    at = commit()  # before the run: a commit made meanwhile is not what was measured
    report = Report()
    started = time.monotonic()
    measure(options, report)
    seconds = time.monotonic() - started
    lines = table(report.figures)
    print("\n" + lines + "\n")
    if options.record:
        # places of this machine mean nothing on another
        given = (f".../{Path(x).name}" if Path(x).is_absolute() else x for x in sys.argv[1:])
        command = " ".join(["python -m", f"bench.{name}", *given])
        day = datetime.now(UTC).date().isoformat()
        notes = "".join(f"\n- {note}" for note in report.notes)
        own = "".join(f"{line}\n" for line in report.table)
        entry = (
            f"\n## {name}, {day}, {at}\n\n`{command}`; {hardware()}; {seconds:.0f} s\n\n"
            f"{own}\n{lines}\n{notes}\n"
        )
        with RESULTS.open("a", encoding="utf-8") as stream:
            stream.write(entry)
    figures = [
        {"what": f.what, "value": f.value, "bar": f.bar, "holds": f.holds} for f in report.figures
    ]
    line = {"name": name, "commit": at, "hardware": hardware(), "figures": figures}
    print(json.dumps(line), flush=True)
    sys.exit(0 if all(f.holds for f in report.figures) else 1)


class PeakMemory:
    """Peak memory in bytes of a process, this one if none is named, and its descendants while it
    is open.

    Summed over processes as proportional set size: a page that several share, as Ray's object
    store is, counts once in all. What else runs on the machine does not count.
    """

    def __init__(self, interval: float = 0.5, pid: int | None = None) -> None:
        self.peak = 0
        self._root = psutil.Process(pid)
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, _proportional(self._root))
            self._stop.wait(self._interval)


def _proportional(root: psutil.Process) -> int:
    total = 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended meanwhile
            continue
    return total
