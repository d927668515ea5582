"""Settings from a file: `--set @FILE` is what its lines would be on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import behaviour, train
from rec.config import ConfigError

GIVEN = ["--recipe", "rec.recipes.sequence:debug", "--rows", "r", "--out", "o", "--set"]


def test_a_file_holds_a_setting_a_line_and_the_last_of_a_path_counts(tmp_path: Path) -> None:
    file = tmp_path / "best.txt"
    file.write_text('# trial 3\n\nmodel.dim=32\n  loss.kind="gbce"\ntrain.steps=7\n')
    options = train.parser().parse_args([*GIVEN, "train.steps=5", f"@{file}", "model.dim=8"])
    assert options.set == [
        "train.steps=5",
        "model.dim=32",
        'loss.kind="gbce"',
        "train.steps=7",
        "model.dim=8",
    ]
    recipe = train.load_recipe(options.recipe, options.set)
    assert (recipe.model.dim, recipe.loss.kind, recipe.train.steps) == (8, "gbce", 7)
    again = train.parser().parse_args([*GIVEN, "a=1", "--set", "b=2"])
    assert again.set == ["a=1", "b=2"]


def test_a_wrong_name_in_a_file_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "best.txt"
    file.write_text("model.width=32\n")
    assert train.main([*GIVEN, f"@{file}"]) == 1
    message = capsys.readouterr().err
    assert "'model.width': no field 'width'" in message
    assert "num_heads" in message


def test_a_file_that_is_not_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.parser().parse_args([*GIVEN, f"@{tmp_path}/none.txt"])
    assert f"--set @{tmp_path}/none.txt" in capsys.readouterr().err


def test_a_time_that_is_none_is_told_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        behaviour.arguments().parse_args(["--logs", "x", "--out", "y", "--cutoff", "yesterday"])
    assert "'yesterday': expected a time, as 2026-01-08 or" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--workers", "-1"], "'-1': expected a whole number from 0 on"),
        (["--out", ""], "empty; '.' is the folder you are in"),
    ],
)
def test_wrong_values_of_flags_are_told_before_anything_starts(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.parser().parse_args([*GIVEN[:-1], *given])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "place",
    [
        ":",
        "os:",
        "nowhere.at.all:demo",
        "rec.recipes.content",
        "rec.recipes.content:annotations",  # no function
        "rec.recipes.content:ContentRecipe",  # of arguments
    ],
)
def test_a_recipe_that_is_not_there(place: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe '{place}'"):
        train.load_recipe(place)
