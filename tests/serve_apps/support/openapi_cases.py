"""Requests made from an OpenAPI document, as it has them and broken, and answers held to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from hypothesis import strategies as st
from jsonschema import Draft202012Validator

# what a schema cannot say, by a field's name, a schema's, or the path of a route that takes bytes
Hints = Mapping[str, st.SearchStrategy[Any]]

TEXT = st.text(st.characters(codec=None), max_size=12)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)


class Operation(NamedTuple):
    method: str
    path: str
    about: dict[str, Any]


class Case(NamedTuple):
    operation: Operation
    query: dict[str, str]
    content: bytes | None
    media_type: str


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            yield Operation(method.upper(), path, about)


def cases(document: dict[str, Any], operation: Operation, hints: Hints) -> st.SearchStrategy[Case]:
    """Requests of one operation; half of them are as the document says."""
    return st.booleans().flatmap(lambda broken: _cases(document, operation, hints, broken))


def check(document: dict[str, Any], operation: Operation, answer: Any) -> None:
    """Raise AssertionError where an answer is none that the document has."""
    where = f"{operation.method} {operation.path}"
    assert answer.status_code < 500, f"{where}: {answer.status_code} {answer.text}"
    responses = operation.about["responses"]
    assert str(answer.status_code) in responses, f"{where}: {answer.status_code} is undocumented"
    content = responses[str(answer.status_code)]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in content, f"{where}: {kind} is undocumented"
    if kind == "application/json":
        schema = content[kind]["schema"] | {"components": document["components"]}
        Draft202012Validator(schema).validate(answer.json())


def _cases(
    document: dict[str, Any], operation: Operation, hints: Hints, broken: bool
) -> st.SearchStrategy[Case]:
    query: dict[str, st.SearchStrategy[str]] = {}
    for one in operation.about.get("parameters", ()):
        assert one["in"] == "query"
        good = _values(document, one["schema"], hints, one["name"], False).map(_spelt)
        query[one["name"]] = good | st.text(max_size=5) if broken else good
    content: st.SearchStrategy[bytes | None] = st.none()
    (media_type,) = operation.about.get("requestBody", {"content": {"": None}})["content"]
    if media_type == "application/json":
        schema = operation.about["requestBody"]["content"][media_type]["schema"]
        body = _values(document, schema, hints, operation.path, broken)
        content = body.map(lambda value: json.dumps(value).encode())
        if broken:
            content |= st.binary(max_size=20)
    elif media_type:
        content = hints[operation.path]
        if broken:
            content |= st.binary(max_size=200)
    others = ["text/plain"] if broken else []
    return st.builds(
        Case,
        st.just(operation),
        st.fixed_dictionaries({}, optional=query),
        content,
        st.sampled_from([media_type] * 9 + others),
    )


def _spelt(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="replace").decode()  # half a pair cannot stand in a URL


def _values(
    document: dict[str, Any], schema: dict[str, Any], hints: Hints, name: str, broken: bool
) -> st.SearchStrategy[Any]:
    good = _as_said(document, schema, hints, name, broken)
    return st.one_of([good] * 9 + [JUNK]) if broken else good


def _as_said(
    document: dict[str, Any], schema: dict[str, Any], hints: Hints, name: str, broken: bool
) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = document["components"]["schemas"][name]
    if "anyOf" in schema:
        return st.one_of([_values(document, one, hints, name, broken) for one in schema["anyOf"]])
    if "oneOf" in schema:  # of which each may hold all again
        return st.deferred(
            lambda: st.one_of(
                [_values(document, one, hints, name, broken) for one in schema["oneOf"]]
            )
        )
    if "const" in schema:
        return st.just(schema["const"])
    kind = schema["type"]
    if kind == "null":
        return st.none()
    if name in hints and not (broken and kind == "object"):
        return hints[name]
    if kind == "object":
        return _objects(document, schema, hints, broken)
    if kind == "array":
        each = _values(document, schema["items"], hints, f"{name}[]", broken)
        return st.lists(each, min_size=schema.get("minItems", 0), max_size=6)
    if kind == "integer":
        return st.integers(schema.get("minimum"), schema.get("maximum"))
    plain = {"string": TEXT, "number": st.floats(allow_nan=False), "boolean": st.booleans()}
    return plain[kind]


def _objects(
    document: dict[str, Any], schema: dict[str, Any], hints: Hints, broken: bool
) -> st.SearchStrategy[dict[str, Any]]:
    fields = {
        name: _values(document, one, hints, name, broken)
        for name, one in schema["properties"].items()
    }
    needed = [name for name in schema.get("required", ()) if not broken]
    optional = {name: one for name, one in fields.items() if name not in needed}
    if broken:
        optional["surplus"] = JUNK
    return st.fixed_dictionaries({name: fields[name] for name in needed}, optional=optional)
