"""Recommenders judged on held-out rows: all items ranked, every doubt against the recommender.

Baselines fitted on the training rows, trained encoders, and encoders as they are served through
an index answer the same questions: given a user's history, rank all N items; the targets should
come first. Users stream past in chunks, so that memory is a chunk's scores, the targets, and what
a scorer holds itself. Rules of ranking: `rec.metrics.ranking`. Besides:

- What a user has seen is left out of the lists (`exclude_seen`); a target that was seen before
  then cannot be found and stays in the denominator.
- A target without an event on the training side stays in, too, and has a slice of its own.
- Users without history are asked like all others; baselines give them popularity, an encoder that
  knows nothing of a user retrieves nothing.
- An item that is a user's target twice counts once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, get_args

import numpy as np
from pydantic import Field

from rec.artifacts import Manifest, join, read_manifest, write_atomic
from rec.config import Config, ConfigError
from rec.data.sequence_rows import KIND
from rec.data.stream import StreamError
from rec.metrics.bootstrap import bootstrap_means
from rec.metrics.ranking import ndcg
from rec.models.estimators.ease import MAX_ITEMS
from rec.retrieval.errors import IndexBuildError
from rec.retrieval.queries import MAX_K
from rec.retrieval.spec import IndexConfig
from rec.runtime.evaluation_results import Difference, Figure
from rec.runtime.ranking_baselines import Baseline, BaselineName, Fitter, tuned
from rec.runtime.ranking_data import Side, read_ranked_items, training_histories
from rec.runtime.ranking_encoder import EncoderScorer, SequenceEncoder, ServedLists, index_of
from rec.runtime.ranking_judge import Judge, Judged, Slice
from rec.runtime.ranking_results import RankingEvaluation, ranking_markdown
from rec.runtime.verify import verify

METRICS = "metrics.json"
TABLE = "metrics.md"


class RankingConfig(Config):
    """What to evaluate and how."""

    rows: str  # a "sequence-rows" artifact
    baselines: tuple[BaselineName, ...] = get_args(BaselineName)
    # the method that models are compared with, paired by user; None: the baseline that is best by
    # NDCG at the smallest cut-off
    against: str | None = None
    side: Side = "test"
    # an index gives MAX_K at most, and one more than the largest is asked for
    cutoffs: tuple[Annotated[int, Field(gt=0, lt=MAX_K)], ...] = Field(
        default=(10, 30, 50, 100), min_length=1
    )
    exclude_seen: bool = True  # leave out of the lists what stands in the user's history
    tune_users: int = Field(default=5000, ge=0)  # validation rows that baselines are tuned on
    served: bool = True  # score encoders through an index, too
    new_user_events: int = Field(default=5, ge=1)  # with fewer events of history a user is new
    head_share: float = Field(default=0.8, gt=0, le=1)  # of events; items outside are the tail
    index: IndexConfig = IndexConfig()  # of the served path
    device: str = "cpu"  # where encoders run and score


def evaluate_ranking(
    config: RankingConfig,
    encoders: Mapping[str, SequenceEncoder] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> RankingEvaluation:
    """All figures of the baselines and encoders on one side of the rows.

    Args:
        config: rows and settings.
        encoders: name -> a loaded model.
        tell: called with the name of each method before it is asked.

    Raises:
        ArtifactError: there are no sequence rows, or they are not as published.
        StreamError: a side has no rows.
        ConfigError: `against` is no method that is evaluated, an encoder has a baseline's name,
            or there is nothing to evaluate.
    """
    return _Run(config, tell).evaluate(encoders or {})


class _Run:
    """One evaluation. What it finds out on the way is kept here."""

    def __init__(self, config: RankingConfig, tell: Callable[[str], None]) -> None:
        self.config, self.tell = config, tell
        self.manifest: Manifest = read_manifest(config.rows, KIND)
        verify(config.rows, self.manifest)
        self.items = read_ranked_items(config.rows)
        self.judge = Judge.of(
            config.rows,
            config.side,
            self.items,
            config.cutoffs,
            exclude_seen=config.exclude_seen,
            new_user_events=config.new_user_events,
            head_share=config.head_share,
        )
        self.judged: dict[str, Judged] = {}
        self.seconds: dict[str, float] = {}
        self.settings: dict[str, str] = {}
        self.notes: list[str] = []

    def evaluate(self, encoders: Mapping[str, SequenceEncoder]) -> RankingEvaluation:
        baselines = self._asked_baselines()
        names = [*baselines, *encoders]
        if not names:
            raise ConfigError("nothing to evaluate: no baselines and no models")
        if both := sorted(set(baselines) & set(encoders)):
            raise ConfigError(f"model {both[0]!r} is called as a baseline is: rename its folder")
        if self.config.against is not None and self.config.against not in names:
            raise ConfigError(
                f"against {self.config.against!r}: not evaluated; there are: {', '.join(names)}"
            )
        self._baselines(baselines)
        models = [name for key, encoder in encoders.items() for name in self._encoder(key, encoder)]
        slices = {name: self.judge.slices(one.ranks) for name, one in self.judged.items()}
        figures, differences = self._figures(slices, models)
        told = self.manifest.metrics
        return RankingEvaluation(
            rows=self.config.rows,
            rows_version=self.manifest.version,
            side=self.config.side,
            split=told["split"],
            cutoff=told["cutoff"],
            num_items=len(self.items),
            figures=tuple(figures),
            shown=tuple(s for one in self.judged.values() for s in one.shown),
            differences=tuple(differences),
            models=tuple(models),
            settings=self.settings,
            counts={**self.judge.aims.counts, "cold targets": self._num_cold()},
            seconds={name: round(s, 3) for name, s in self.seconds.items()},
            notes=(*self._about(), *self.notes),
        )

    def _num_cold(self) -> int:
        cold = (self.items.num_events == 0).astype(np.float32)
        return int((self.judge.aims.relevant @ cold).sum())

    def _asked_baselines(self) -> list[BaselineName]:
        """Those of the config that so many items allow."""
        if len(self.items) <= MAX_ITEMS:
            return list(self.config.baselines)
        if "EASE" in self.config.baselines:
            self.notes.append(f"EASE: skipped, {len(self.items):,} items are over {MAX_ITEMS:,}")
        return [name for name in self.config.baselines if name != "EASE"]

    def _baselines(self, names: Sequence[BaselineName]) -> None:
        timed = bool(self.manifest.metrics.get("timed"))
        fitter = Fitter(training_histories(self.config.rows), len(self.items), timed)
        judge = self._tuning()
        for name in names:
            self.tell(name)
            started = time.perf_counter()
            model, setting = tuned(fitter.variants(name), judge)
            if setting:
                self.settings[name] = setting
            self.judged[name] = self.judge.judge(name, self.judge.exact(model))
            self.seconds[name] = time.perf_counter() - started

    def _tuning(self) -> Callable[[Baseline], float] | None:
        """NDCG at the smallest cut-off on validation rows; None where there are none."""
        if not self.config.tune_users:
            return None
        try:
            judge = Judge.of(
                self.config.rows,
                "heldout",
                self.items,
                self.config.cutoffs[:1],
                max_users=self.config.tune_users,
                exclude_seen=self.config.exclude_seen,
            )
        except StreamError as error:
            self.notes.append(f"baselines are not tuned, there are no validation rows: {error}")
            return None
        return lambda model: float(ndcg(judge.ranks(model), judge.cutoffs[0]).mean())

    def _encoder(self, name: str, encoder: SequenceEncoder) -> list[str]:
        """Judge an encoder; the names of its methods."""
        self.tell(name)
        started = time.perf_counter()
        scorer = EncoderScorer(encoder, self.items)
        self.judged[name] = self.judge.judge(name, self.judge.exact(scorer))
        self.seconds[name] = time.perf_counter() - started
        if scorer.num_unknown_items:
            self.notes.append(
                f"{name}: does not know {scorer.num_unknown_items:,} of the items, which come "
                f"last; {scorer.num_unknown_events:,} events of histories were of those"
            )
        if not self.config.served:
            return [name]
        served = f"{name}, served"
        self.tell(served)
        started = time.perf_counter()
        try:
            index = index_of(scorer, self.config.index)
        except IndexBuildError as error:
            self.notes.append(f"{served}: not asked, {error}")
            return [name]
        lists = ServedLists(scorer, index)
        self.judged[served] = self.judge.judge(served, self.judge.served(lists))
        self.seconds[served] = time.perf_counter() - started
        built = index.manifest
        self.notes.append(
            f"{served}: {built.config['factory']}, recall@10 of the index "
            f"{built.metrics['recall@10']:.4f}"
        )
        return [name, served]

    def _figures(
        self, slices: dict[str, list[Slice]], models: list[str]
    ) -> tuple[list[Figure], list[Difference]]:
        """Figures of all methods and slices; what each model gains over the baseline."""
        against = self._against(slices, models)
        figures: list[Figure] = []
        differences: list[Difference] = []
        for place in range(max((len(found) for found in slices.values()), default=0)):
            found = {name: own[place] for name, own in slices.items()}
            compared = [name for name in models if against is not None and name != against]
            columns = [one.values for one in found.values()]
            if against is not None:
                columns += [found[name].values - found[against].values for name in compared]
            intervals = iter(bootstrap_means(np.concatenate(columns, axis=1)))
            for name, one in found.items():
                for metric in self.judge.metrics:
                    value, low, high = next(intervals)
                    figures.append(
                        Figure(
                            run=self.config.rows,
                            method=name,
                            task=one.name,
                            metric=metric,
                            value=value,
                            low=low,
                            high=high,
                            num_queries=len(one.values),
                        )
                    )
            for name in compared:
                for metric in self.judge.metrics:
                    value, low, high = next(intervals)
                    differences.append(
                        Difference(
                            run=name,
                            task=found[name].name,
                            metric=metric,
                            baseline=against or "",
                            value=value,
                            low=low,
                            high=high,
                        )
                    )
        return figures, differences

    def _against(self, slices: dict[str, list[Slice]], models: list[str]) -> str | None:
        if self.config.against is not None:
            return self.config.against
        column = self.judge.metrics.index(f"NDCG@{self.judge.cutoffs[0]}")
        means = {
            name: float(own[0].values[:, column].mean())
            for name, own in slices.items()
            if name not in models
        }
        return max(means, key=lambda name: means[name]) if means else None

    def _about(self) -> list[str]:
        c, counts = self.config, self.judge.aims.counts
        seen = counts["targets that the user has seen before"]
        filtered = "left out of the lists" if c.exclude_seen else "not left out of the lists"
        hidden = f"; {seen:,} targets cannot be found for that" if c.exclude_seen and seen else ""
        notes = [
            f"what a user has seen is {filtered}{hidden}",
            f"cold items have no event on the training side, tail items are outside those that "
            f"have {c.head_share:.0%} of its events, new users have fewer than "
            f"{c.new_user_events} events of history",
        ]
        if c.baselines and c.tune_users:
            notes.append(
                f"baselines are tuned by NDCG@{self.judge.cutoffs[0]} on up to {c.tune_users:,} "
                f"validation rows"
            )
        return notes


def write_ranking(evaluation: RankingEvaluation, uri: str) -> None:
    """Write METRICS and TABLE below `uri`."""
    write_atomic(join(uri, METRICS), evaluation.to_json().encode())
    write_atomic(join(uri, TABLE), ranking_markdown(evaluation).encode())
