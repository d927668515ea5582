"""What is tuned of each kind of recipe, between which bounds and why, and what is tried next.

A space maps the path of a recipe's setting, as `--set` takes it, to an Optuna distribution. The
values of the recipes as they are lie inside. What changes the cost of a step by more than about
four times, or how many rows a step takes (batch size), is not tuned: trials are compared at equal
numbers of steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from rec.config import Config, ConfigError
from rec.recipes.matching import DSSMRecipe
from rec.recipes.sequence import SASRecRecipe
from tune.trials import TrialRecord

Space = dict[str, BaseDistribution]
_STARTUP_TRIALS = 5  # drawn at random before the estimator of good regions is asked

_TRAINING: Space = {
    # half an order of magnitude around AdamW's 1e-3, at which both recipes were sized
    "train.learning_rate": FloatDistribution(3e-4, 3e-3, log=True),
    # none, as published, to what regularises small data visibly; embeddings never decay
    "train.weight_decay": CategoricalDistribution([0.0, 0.01, 0.1]),
}
SASREC: Space = {
    **_TRAINING,
    # published: .2 where users have hundreds of events, .5 where they have ten
    "model.dropout": FloatDistribution(0.0, 0.6),
    "model.dim": CategoricalDistribution([32, 64, 128]),
    # more layers than three have not paid in the literature on logs of this size
    "model.num_layers": IntDistribution(1, 3),
    "model.num_heads": CategoricalDistribution([1, 2, 4]),  # each divides each width
    "model.widening": CategoricalDistribution([1, 4]),  # SASRec's own, a transformer's usual
}
DSSM: Space = {
    **_TRAINING,
    # unit vectors: below .03 one negative takes the whole loss, above .2 all count alike
    "model.temperature": FloatDistribution(0.03, 0.2, log=True),
    "model.popularity": FloatDistribution(0.0, 1.0),  # of sampled negatives: uniform to by events
    "model.user.dim": CategoricalDistribution([32, 64, 128]),
    "model.user.hidden_dim": CategoricalDistribution([128, 256, 512]),
    "model.item_hidden_dim": CategoricalDistribution([128, 256, 512]),
    "model.user.dropout": FloatDistribution(0.0, 0.5),
    # a user's targets are alike: more of them teach less than more users would
    "targets_per_user": CategoricalDistribution([4, 8, 16]),
}


def space_of(recipe: Config) -> Space:
    """The space of a recipe, by its class.

    Raises:
        ConfigError: there is none for this class.
    """
    match recipe:
        case SASRecRecipe():
            sampled = {
                # which negatives; the loss over all items has no such setting
                "sampled_softmax": {"loss.popularity": FloatDistribution(0.0, 1.0)},
                # t: 0 is plain binary cross-entropy, 1 calibrates scores as a softmax does
                "gbce": {"loss.calibration": FloatDistribution(0.0, 1.0)},
            }
            return SASREC | sampled.get(recipe.loss.kind, {})
        case DSSMRecipe():
            return DSSM
        case _:
            raise ConfigError(
                f"{type(recipe).__name__}: no space to tune it over; there are spaces for "
                "SASRecRecipe and DSSMRecipe (tune/space.py)"
            )


def assignments(values: Mapping[str, Any]) -> list[str]:
    """PATH=VALUE of each, as `--set` takes them.

    >>> assignments({"model.dim": 64, "loss.kind": "softmax"})
    ['model.dim=64', 'loss.kind="softmax"']
    """
    return [f"{path}={json.dumps(value)}" for path, value in values.items()]


def propose(space: Space, records: Sequence[TrialRecord], seed: int = 0) -> dict[str, Any]:
    """Values to try next, by TPE (Bergstra et al. 2011) from the trials there are.

    A trial that was stopped early counts with its last figure, one that failed as worse than any
    other, one that is running as bad, so that trials at a time differ.

    A function of what it is given alone: the search goes on from records, not from a process.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed + len(records), n_startup_trials=_STARTUP_TRIALS)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for record in records:
        if record.values.keys() != space.keys():
            continue  # the recipe as it is
        state = TrialState.COMPLETE
        if record.state == "failed":
            state = TrialState.PRUNED
        elif record.state == "running":
            state = TrialState.RUNNING
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=record.values,
                distributions=space,
                value=record.figure if state == TrialState.COMPLETE else None,
            )
        )
    return study.ask(space).params
