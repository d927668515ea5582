"""What the command lines of all jobs have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rec.config import Config


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
