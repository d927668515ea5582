"""Spaces fit the recipes they are for; what is tried next is a function of the records."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution

from rec.config import Config, ConfigError
from rec.nn.losses.items import ItemLossConfig
from rec.recipes import content, matching, sequence
from tune.space import assignments, propose, space_of
from tune.trials import TrialRecord

SAMPLED = sequence.sampled()
GBCE = sequence.sasrec().model_copy(update={"loss": ItemLossConfig(kind="gbce")})
RECIPES: dict[str, Any] = {
    "sasrec": sequence.sasrec(),
    "sampled": SAMPLED,
    "gbce": GBCE,
    "dssm": matching.dssm(),
}


def value_at(recipe: Config, path: str) -> Any:
    found: Any = recipe
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_as_it_is_lies_in_its_space(name: str):
    recipe = RECIPES[name]
    for path, bounds in space_of(recipe).items():
        value = value_at(recipe, path)
        assert bounds._contains(bounds.to_internal_repr(value)), f"{path} = {value}"


def test_only_losses_over_a_sample_are_tuned_for_it():
    assert "loss.popularity" in space_of(SAMPLED)
    assert "loss.calibration" in space_of(GBCE)
    assert not [path for path in space_of(sequence.sasrec()) if path.startswith("loss.")]


def test_heads_divide_every_width():
    space = space_of(sequence.sasrec())
    heads, widths = space["model.num_heads"], space["model.dim"]
    assert isinstance(heads, CategoricalDistribution)
    assert isinstance(widths, CategoricalDistribution)
    assert not [(w, h) for w in widths.choices for h in heads.choices if w % h]  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_proposed_is_taken_by_the_recipe(name: str):
    recipe = RECIPES[name]
    for seed in range(5):
        values = propose(space_of(recipe), [], seed)
        changed = recipe.override(assignments(values))
        assert {path: value_at(changed, path) for path in values} == values


def test_a_recipe_without_a_space_is_refused():
    with pytest.raises(ConfigError, match="BERT4RecRecipe: no space"):
        space_of(sequence.bert4rec())
    with pytest.raises(ConfigError, match="no space"):
        space_of(content.debug())


def test_proposals_depend_on_the_records_alone_and_avoid_what_is_bad():
    space = {"x": CategoricalDistribution(["good", "bad", "fails"])}
    states: dict[str, Any] = {"good": "finished", "bad": "stopped", "fails": "failed"}
    figures = {"good": ((10, 0.5),), "bad": ((10, 0.1),), "fails": ()}
    records = [TrialRecord(number=0, values={}, state="finished", figures=((10, 0.2),))]
    for number in range(1, 31):
        kind = ("good", "bad", "fails")[number % 3]
        record = TrialRecord(
            number=number, values={"x": kind}, state=states[kind], figures=figures[kind]
        )
        records.append(record)
    records.append(TrialRecord(number=31, values={"x": "bad"}))  # under way
    found = [propose(space, records, seed)["x"] for seed in range(40)]
    assert found == [propose(space, records, seed)["x"] for seed in range(40)]
    assert found.count("good") > 30
