"""The row ledger: what went into every stage, what came out, what was dropped and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rec.config import Config

MAX_PROBLEMS = 100  # messages kept, and ids by reason; all are counted


class LedgerError(ValueError):
    """Rows of a stage are unaccounted for."""


class StageCounts(Config):
    """Rows of one stage; rows_in = rows_out + the sum of dropped."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, int] = {}  # reason -> rows
    dropped_ids: dict[str, tuple[str, ...]] = {}  # reason -> the first ids, where rows have any

    def __add__(self, other: StageCounts) -> StageCounts:
        reasons, ids = {**self.dropped}, {**self.dropped_ids}
        for reason, count in other.dropped.items():
            reasons[reason] = reasons.get(reason, 0) + count
        for reason, more in other.dropped_ids.items():
            ids[reason] = (*ids.get(reason, ()), *more)[:MAX_PROBLEMS]
        return StageCounts(
            rows_in=self.rows_in + other.rows_in,
            rows_out=self.rows_out + other.rows_out,
            dropped=reasons,
            dropped_ids=ids,
        )


class Ledger(Config):
    """Counts by stage, in the order in which stages ran, and problems that cost no row."""

    stages: dict[str, StageCounts] = {}
    num_problems: int = 0  # parts of rows that had to be left out, an unreadable sound say
    problems: tuple[str, ...] = ()  # the first of them

    def record(
        self,
        stage: str,
        rows_in: int,
        rows_out: int,
        dropped: Mapping[str, int] | None = None,
        problems: tuple[str, ...] = (),
        dropped_ids: Mapping[str, Iterable[str]] | None = None,
    ) -> Ledger:
        """This ledger with one more run of `stage`.

        Raises:
            LedgerError: rows_in is not rows_out plus what was dropped.
        """
        reasons = {reason: count for reason, count in (dropped or {}).items() if count}
        if rows_in != rows_out + sum(reasons.values()):
            raise LedgerError(
                f"stage '{stage}': {rows_in} rows in, {rows_out} out and {reasons} dropped leave "
                f"{rows_in - rows_out - sum(reasons.values())} unaccounted for"
            )
        ids = {reason: tuple(found)[:MAX_PROBLEMS] for reason, found in (dropped_ids or {}).items()}
        counts = StageCounts(rows_in=rows_in, rows_out=rows_out, dropped=reasons, dropped_ids=ids)
        entry = Ledger(stages={stage: counts}, num_problems=len(problems), problems=problems)
        return self.merge(entry)

    def merge(self, other: Ledger) -> Ledger:
        """Both ledgers' rows and problems together."""
        stages = {**self.stages}
        for name, counts in other.stages.items():
            stages[name] = stages.get(name, StageCounts()) + counts
        return Ledger(
            stages=stages,
            num_problems=self.num_problems + other.num_problems,
            problems=(self.problems + other.problems)[:MAX_PROBLEMS],
        )

    def table(self) -> str:
        """The ledger for people, a line a stage."""
        lines = [f"{'stage':<18}{'in':>12}{'out':>12}  dropped"]
        for name, counts in self.stages.items():
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.dropped.items())
            lines.append(f"{name:<18}{counts.rows_in:>12}{counts.rows_out:>12}  {reasons or '-'}")
            for reason, ids in counts.dropped_ids.items():
                lines.append(f"  {reason}, the first of them: {', '.join(ids[:5])}")
        if self.num_problems:
            lines.append(f"{self.num_problems} problems that cost no row, the first of them:")
            lines.extend(f"  {problem}" for problem in self.problems[:5])
        return "\n".join(lines)
