"""Frozen, typed configuration with a JSON round trip and typed overrides from a command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

C = TypeVar("C", bound="Config")


class ConfigError(ValueError):
    """An override names no field, or its value has the wrong type. The message says which."""


def one_line(error: Exception) -> str:
    """What an error says, in a line: of a config's the first fault, with the field's name."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    first, *others = error.errors(include_url=False)
    field = ".".join(str(part) for part in first["loc"])
    more = f", and {len(others)} more" if others else ""
    return f"{field}: {first['msg']}{more}" if field else f"{first['msg']}{more}"


class Config(BaseModel):
    """Base of every configuration: immutable, no unknown fields, every field documented."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def to_json(self) -> str:
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls: type[C], text: str) -> C:
        return cls.model_validate_json(text)

    def override(self: C, assignments: Iterable[str]) -> C:
        """A copy with `path=value` assignments applied, as in `train.steps=100`.

        Values are JSON where they parse as JSON (numbers, true, null, lists), text otherwise.

        Raises:
            ConfigError: an assignment has no '=', names no field, or has a value that the
                field's type refuses.
        """
        data = self.model_dump()
        for assignment in assignments:
            path, separator, text = assignment.partition("=")
            if not separator:
                raise ConfigError(f"override {assignment!r}: expected PATH=VALUE")
            _set(data, path.strip(), _value(text))
        try:
            return type(self).model_validate(data)
        except ValidationError as error:
            lines = [
                f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']} (got {e['input']!r})"
                for e in error.errors()
            ]
            raise ConfigError("override: " + "; ".join(lines)) from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _set(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    place = data
    for i, name in enumerate(parents):
        inner = place.get(name)
        if not isinstance(inner, dict):
            known = ", ".join(k for k, v in place.items() if isinstance(v, dict))
            where = ".".join(parents[: i + 1])
            raise ConfigError(f"override {path!r}: no section {where!r}; there are: {known}")
        place = inner
    if leaf not in place:
        raise ConfigError(f"override {path!r}: no field {leaf!r}; there are: {', '.join(place)}")
    place[leaf] = value


def settings(config: Config, prefix: str = "") -> Iterator[str]:
    """One line a field, sections opened: `path = value  (type)  description`, as override() takes
    them."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from settings(value, f"{prefix}{name}.")
        else:
            kind = str(field.annotation)
            kind = getattr(field.annotation, "__name__", kind) if "[" not in kind else kind
            says = f"  {field.description}" if field.description else ""
            yield f"{prefix}{name} = {value}  ({kind.replace('typing.', '')}){says}"
