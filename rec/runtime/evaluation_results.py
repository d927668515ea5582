"""What evaluation found: figures with intervals, as JSON and as a Markdown table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rec.config import Config
from rec.metrics.bootstrap import Interval, bootstrap_interval, over_seeds, paired_difference

MODEL = "model"
Floats = NDArray[np.floating]


class Figure(Config):
    """One line of metrics.json. `low` and `high` are a 95 % interval, null where there is none."""

    run: str
    method: str
    task: str
    metric: str
    value: float | None  # null is infinite: a median rank where most found nothing
    low: float | None
    high: float | None
    num_queries: int


class Difference(Config):
    """Paired difference of the model and the best baseline of a figure, with its interval."""

    run: str
    task: str
    metric: str
    baseline: str
    value: float
    low: float
    high: float


class Evaluation(Config):
    """metrics.json."""

    run: str
    figures: tuple[Figure, ...]
    differences: tuple[Difference, ...]
    settings: dict[str, str]  # "method, task" -> what tuning chose
    num_train: int
    num_heldout: int
    cutoff: str | None
    notes: tuple[str, ...]  # what was sampled, skipped or could not be read


class Answers(NamedTuple):
    """A method's values of one figure, one a query; NaN-free, in the order of the queries."""

    method: str
    task: str
    metric: str
    values: Floats
    statistic: Literal["mean", "median"] = "mean"


def figure(run: str, answers: Answers) -> Figure:
    """The figure of one method in one run, with a bootstrap interval over queries."""
    interval = bootstrap_interval(answers.values, statistic=answers.statistic)
    return _line(run, answers, interval)


def _line(run: str, answers: Answers, interval: Interval) -> Figure:
    value, low, high = (float(x) if math.isfinite(x) else None for x in interval)
    return Figure(
        run=run,
        method=answers.method,
        task=answers.task,
        metric=answers.metric,
        value=value,
        low=low,
        high=high,
        num_queries=len(answers.values),
    )


def over_runs(runs: Sequence[Sequence[Answers]]) -> list[Figure]:
    """Mean over runs of each figure of one method, with Student's t interval over the runs.

    Args:
        runs: the answers of each run, in the same order.
    """
    figures: list[Figure] = []
    for parts in zip(*runs, strict=True):
        take = np.mean if parts[0].statistic == "mean" else np.median
        interval = over_seeds([float(take(p.values)) for p in parts])
        figures.append(_line(mean_name(len(runs)), parts[0], interval))
    return figures


def mean_name(num_runs: int) -> str:
    """What the mean over runs is called in the column `run`."""
    return f"mean of {num_runs} runs"


def differences(runs: dict[str, list[Answers]], baselines: Sequence[Answers]) -> list[Difference]:
    """The model less the best baseline of each mean, paired by query.

    With several runs, a query's value is the mean over them.
    """
    name = next(iter(runs)) if len(runs) == 1 else mean_name(len(runs))
    found: list[Difference] = []
    for parts in zip(*runs.values(), strict=True):
        own = parts[0]
        others = [a for a in baselines if (a.task, a.metric) == (own.task, own.metric)]
        if own.statistic != "mean" or not others:
            continue
        best = max(others, key=lambda a: float(a.values.mean()))
        ours = np.mean([p.values for p in parts], axis=0)
        value, low, high = paired_difference(ours, best.values)
        found.append(
            Difference(
                run=name,
                task=own.task,
                metric=own.metric,
                baseline=best.method,
                value=value,
                low=low,
                high=high,
            )
        )
    return found


def markdown(evaluation: Evaluation) -> str:
    """A table a task: a row a method, the best of each metric in bold, 95 % intervals."""
    lines = [
        f"{evaluation.num_heldout} held-out items, {evaluation.num_train} training items, "
        f"cut-off {evaluation.cutoff or 'none'}. 95 % intervals: over queries, or over runs "
        f"where a row is a mean of runs.",
    ]
    for task in dict.fromkeys(f.task for f in evaluation.figures):
        own = [f for f in evaluation.figures if f.task == task]
        metrics = list(dict.fromkeys(f.metric for f in own))
        counts = ", ".join(
            f"{m} over {next(f.num_queries for f in own if f.metric == m)}" for m in metrics
        )
        lines += ["", f"**{task}** ({counts})", "", *task_table(own)]
    gains = [
        f"- {d.task}, {d.metric}: {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}] against {d.baseline}"
        for d in evaluation.differences
    ]
    if gains:
        lines += ["", "Model less the best baseline, paired by query:", "", *gains]
    lines += ["", *(f"- {note}" for note in evaluation.notes)]
    return "\n".join(lines) + "\n"


def task_table(figures: Sequence[Figure]) -> list[str]:
    """Lines of Markdown: a row a method, a column a metric, of the figures of one task."""
    metrics = list(dict.fromkeys(f.metric for f in figures))
    lines = [f"| method | {' | '.join(metrics)} |", "| --- |" + " --- |" * len(metrics)]
    best = {m: best_value([f for f in figures if f.metric == m]) for m in metrics}
    for run, method in dict.fromkeys((f.run, f.method) for f in figures):
        cells = []
        for metric in metrics:
            found = [f for f in figures if (f.run, f.method, f.metric) == (run, method, metric)]
            cells.append(_cell(found[0], best[metric]) if found else "")
        name = f"{method}, {run}" if method == MODEL else method
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def best_value(figures: Sequence[Figure]) -> float | None:
    """The best value: the lowest where the metric is a rank, else the highest."""
    values = [f.value for f in figures if f.value is not None]
    if not values:
        return None
    return min(values) if figures[0].metric.endswith("rank") else max(values)


def _number(value: float | None, metric: str) -> str:
    if value is None:
        return "∞" if metric.endswith("rank") else "–"  # noqa: RUF001
    return f"{value:.0f}" if metric.endswith("rank") else f"{value:.3f}"


def _cell(found: Figure, best: float | None) -> str:
    text = _number(found.value, found.metric)
    if found.value is not None and found.value == best:
        text = f"**{text}**"
    low, high = _number(found.low, found.metric), _number(found.high, found.metric)
    return f"{text} [{low}, {high}]" if found.low is not None else text
