"""What an evaluation of recommenders found: figures as JSON, a Markdown table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rec.config import Config
from rec.report.contents import LedgerRow, Report, ResultRow, ResultTable, Value
from rec.runtime.evaluation_results import Difference, Figure, task_table

ALL = "all targets"


class Shown(Config):
    """What one method's lists of k items show, over all users."""

    method: str
    k: int
    coverage: float  # share of all items that stand in any list
    unique_items: int
    new_share: float  # mean share of a list's items without an event on the training side
    tail_share: float  # mean share outside the head, the new included
    # mean over lists of 1 - cosine of content vectors, over pairs; None where there are none
    intra_list_diversity: float | None
    category_entropy: float | None  # mean over lists, bits; None where no item has a category


class RankingEvaluation(Config):
    """metrics.json of recommenders."""

    rows: str
    rows_version: str
    side: str
    split: str
    cutoff: str | None
    num_items: int
    figures: tuple[Figure, ...]  # task is the slice of targets or users
    shown: tuple[Shown, ...]
    differences: tuple[Difference, ...]  # of each model less the baseline, paired by user
    models: tuple[str, ...]  # methods that are not baselines
    settings: dict[str, str]  # baseline -> what tuning chose
    counts: dict[str, int]  # users, targets, and what had to be settled
    seconds: dict[str, float]  # method -> fitting, scoring, ranking
    notes: tuple[str, ...]

    def figure(self, method: str, metric: str, task: str = ALL) -> Figure:
        """One figure.

        Raises:
            KeyError: it was not asked for.
        """
        for found in self.figures:
            if (found.method, found.metric, found.task) == (method, metric, task):
                return found
        raise KeyError(f"no {metric} of {method!r} on {task!r}")


def _asked(evaluation: RankingEvaluation) -> list[tuple[str, list[Figure]]]:
    """The tables: every cut-off over all targets, the smallest in each slice. Recall is left out
    where every user has one target: it is the hit rate then."""
    tasks = list(dict.fromkeys(f.task for f in evaluation.figures))
    cutoffs = list(dict.fromkeys(f.metric.partition("@")[2] for f in evaluation.figures))
    found: list[tuple[str, list[Figure]]] = []
    for task in tasks:
        own = [f for f in evaluation.figures if f.task == task]
        values = {(f.method, f.metric): f.value for f in own}
        single = all(
            value == values[method, metric.replace("recall", "hit rate")]
            for (method, metric), value in values.items()
            if metric.startswith("recall")
        )
        for k in cutoffs if task == ALL else cutoffs[:1]:
            title = f"{task}, first {k}"
            columns = [f for f in own if f.metric.endswith(f"@{k}")]
            found.append(
                (title, [f for f in columns if not (single and f.metric.startswith("recall"))])
            )
    return found


_SHOWN = {
    "coverage": "coverage",
    "new_share": "new items",
    "tail_share": "tail items",
    "intra_list_diversity": "intra-list diversity",
    "category_entropy": "category entropy, bits",
}


def _gains(evaluation: RankingEvaluation) -> list[str]:
    return [
        f"{d.run}, {d.task}, {d.metric}: {d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}] against "
        f"{d.baseline}"
        for d in evaluation.differences
    ]


def _about(evaluation: RankingEvaluation) -> str:
    users, targets = evaluation.counts["users"], evaluation.counts["targets"]
    return (
        f"{users:,} users and {targets:,} targets of the {evaluation.side} rows (split: "
        f"{evaluation.split}), ranked among all {evaluation.num_items:,} items; ties and NaN "
        f"count against the method. 95 % intervals over users."
    )


def ranking_markdown(evaluation: RankingEvaluation) -> str:
    """Tables for people: figures by slice, lists, differences, notes."""
    lines = [_about(evaluation)]
    for title, figures in _asked(evaluation):
        count = figures[0].num_queries
        lines += ["", f"**{title}** ({count:,} users)", "", *task_table(figures)]
    for k in dict.fromkeys(s.k for s in evaluation.shown):
        lines += [
            "",
            f"**lists of {k}**",
            "",
            f"| method | items | {' | '.join(_SHOWN.values())} |",
        ]
        lines.append("| --- |" + " --- |" * (len(_SHOWN) + 1))
        for shown in (s for s in evaluation.shown if s.k == k):
            cells = [f"{shown.unique_items:,}"]
            for name in _SHOWN:
                value = getattr(shown, name)
                cells.append("-" if value is None else f"{value:.3f}")
            lines.append(f"| {shown.method} | {' | '.join(cells)} |")
    if evaluation.differences:
        lines += ["", "Paired by user:", "", *(f"- {line}" for line in _gains(evaluation))]
    lines += ["", *(f"- {note}" for note in evaluation.notes)]
    return "\n".join(lines) + "\n"


def ranking_report(evaluation: RankingEvaluation) -> Report:
    """The page with the same."""
    tables = [_result_table(title, figures, evaluation) for title, figures in _asked(evaluation)]
    tables += [_shown_table(k, evaluation) for k in dict.fromkeys(s.k for s in evaluation.shown)]
    seconds = [(f"{m}, seconds", f"{s:,.1f}") for m, s in evaluation.seconds.items()]
    settings = [(f"{m}, tuned", setting) for m, setting in evaluation.settings.items()]
    return Report(
        title=f"Raycall: recommendations on {evaluation.rows.rstrip('/').rsplit('/', 1)[-1]}",
        created_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        summary=[
            ("Rows", f"{evaluation.rows}, version {evaluation.rows_version}"),
            ("Split", f"{evaluation.split}{_since(evaluation.cutoff)}"),
            ("Candidates", f"{evaluation.num_items:,} items"),
            *((name.capitalize(), f"{count:,}") for name, count in evaluation.counts.items()),
            *settings,
            *seconds,
        ],
        ledger=[_ledger(evaluation)],
        tables=tables,
        notes=evaluation.notes,
    )


def _since(cutoff: str | None) -> str:
    return f", training ends {cutoff}" if cutoff else ""


def _ledger(evaluation: RankingEvaluation) -> LedgerRow:
    counts = evaluation.counts
    repeats = "targets that repeat another of the same user"
    left = counts["targets"] - counts[repeats]
    return LedgerRow("targets", counts["targets"], left, {repeats: counts[repeats]})


def _result_table(
    title: str, figures: Sequence[Figure], evaluation: RankingEvaluation
) -> ResultTable:
    rows: dict[str, ResultRow] = {}
    for f in figures:
        row = rows.setdefault(f.method, ResultRow(f.method, {}, f.method in evaluation.models))
        row.values[f.metric] = Value(f.value, f.low, f.high)
    metrics, task = {f.metric for f in figures}, figures[0].task
    gains = [
        f"{d.run}, {d.metric}: {d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}] against {d.baseline}, "
        f"paired by user"
        for d in evaluation.differences
        if d.task == task and d.metric in metrics
    ]
    note = f"{figures[0].num_queries:,} users; {_about(evaluation)}"
    return ResultTable(title.capitalize(), note, list(rows.values()), gains=gains)


def _shown_table(k: int, evaluation: RankingEvaluation) -> ResultTable:
    rows = [
        ResultRow(
            s.method,
            {
                label: Value(value)
                for name, label in _SHOWN.items()
                if (value := getattr(s, name)) is not None
            },
            s.method in evaluation.models,
        )
        for s in evaluation.shown
        if s.k == k
    ]
    note = (
        "What the lists show: the share of all items in any list; the mean share of a list that "
        "has no training event, or lies outside the head; 1 - mean cosine of content vectors over "
        "pairs of a list; entropy of its categories."
    )
    return ResultTable(f"Lists of {k}", note, rows)
