"""What the command lines of all jobs have in common: recipes, places, overrides."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import ray

from rec.config import Config, ConfigError

if TYPE_CHECKING:  # a job that trains nothing starts without torch
    from rec.train.recipe import Recipe


def load_recipe(place: str, overrides: Sequence[str] = ()) -> Recipe[Any]:
    """The recipe that the function at `module:function` returns, with typed overrides.

    Raises:
        ConfigError: there is no such function, it returns no recipe, or an override is wrong.
    """
    module_name, separator, function_name = place.partition(":")
    if not separator:
        raise ConfigError(f"recipe {place!r}: expected MODULE:FUNCTION")
    try:
        recipe = getattr(import_module(module_name), function_name)()
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"recipe {place!r}: {error}") from error
    if not isinstance(recipe, Config):
        raise ConfigError(f"recipe {place!r}: returned {type(recipe).__name__}, not a recipe")
    return cast("Recipe[Any]", recipe.override(overrides))


def start_ray() -> None:
    """Use the Ray that is running (RAY_ADDRESS, a submitted job's), else one of this process.

    Before anything that handles SIGTERM: ray.init installs a handler of its own.
    """
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False)


def place(text: str) -> str:
    """A folder or URI as given, local ones made absolute: workers run in folders of their own."""
    return text if "://" in text else os.path.abspath(text)


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m module`, explained by the module's docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_overrides(to: argparse.ArgumentParser, config: Config) -> None:
    """Add `--set PATH=VALUE` and list what can be set, with types and the values of `config`."""
    to.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="PATH=VALUE",
        help="typed overrides of the settings below; may be repeated",
    )
    lines = [f"  {path} = {value}  ({kind})" for path, value, kind in _fields(config)]
    to.epilog = "\n".join(["settings and their defaults:", *lines])


def _fields(config: Config, prefix: str = "") -> Iterator[tuple[str, object, str]]:
    """Path, value and type of every field, sections opened."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            kind = str(field.annotation)
            kind = getattr(field.annotation, "__name__", kind) if "[" not in kind else kind
            yield f"{prefix}{name}", value, kind.replace("typing.", "")
