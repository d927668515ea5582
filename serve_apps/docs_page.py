"""The page at /docs: what the OpenAPI document says, for people, without anybody else's assets.

FastAPI's own pages load theirs from a public network.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

from fastapi import FastAPI, Response

Json: TypeAlias = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #d9dde3; --soft: #596270; --ground: #f6f7f9;
  --text: #1a1e24; --accent: #1f5fd0; font: 16px/1.45 system-ui, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { :root { --line: #343b46; --soft: #a0a9b6; --ground: #12151a;
  --text: #e8ebef; --accent: #7fb0ff; } }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--ground);
  color: var(--text); overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.1rem; } h3 { font-size: 1rem; margin-bottom: 0; }
section { border-top: 1px solid var(--line); margin-top: 1.5rem; }
a { color: var(--accent); } small, .soft { color: var(--soft); }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .6rem; white-space: pre-wrap; }
nav ul { padding: 0; list-style: none; } nav li { padding: .15rem 0; }
dt { margin-top: .5rem; } dd { margin: 0 0 0 1.5rem; }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; frame-ancestors 'none'"


def add_docs(app: FastAPI, below: str) -> None:
    """Add `below`/docs, which tells what `below`/openapi.json does."""

    @app.get(f"{below}/docs", include_in_schema=False)
    async def docs() -> Response:
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        page = docs_page(app.openapi(), f"{below}/openapi.json")
        return Response(page, media_type="text/html", headers=headers)


def docs_page(document: Json, source: str) -> str:
    """The page of an OpenAPI document that FastAPI has made; `source` is where that is."""
    title, schemas = escape(document["info"]["title"]), document["components"]["schemas"]
    routes = [
        (f"{method.upper()} {path}", about)
        for path, methods in document["paths"].items()
        for method, about in methods.items()
    ]
    listed = [
        f'<li><a href="#{_anchor(name)}"><code>{escape(name)}</code></a> '
        f"{escape(about.get('summary', ''))}</li>"
        for name, about in routes
    ]
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>",
        f"<h1>{title} <small>{escape(document['info']['version'])}</small></h1>",
        "<p>A request has an API key in the header <code>Authorization: Bearer KEY</code>, unless "
        "the service asks for none. What is refused is told as "
        '<a href="#ErrorResponse">ErrorResponse</a>. For programs: '
        f'<a href="{source}">{source}</a> (OpenAPI).</p>',
        f"<nav><ul>{''.join(listed)}</ul></nav>",
        *(_route(name, about, document) for name, about in routes),
        *(_schema(name, about) for name, about in schemas.items()),
        "</main></body></html>",
    ]
    return "".join(parts)


def _anchor(name: str) -> str:
    return "".join(one if one.isalnum() else "-" for one in name)


def _route(name: str, about: Json, document: Json) -> str:
    asked = about.get("requestBody", {})
    parts = [
        f'<section id="{_anchor(name)}"><h2><code>{escape(name)}</code></h2>',
        f"<p>{escape(about.get('summary', ''))}</p>",
        f"<p>{escape(about['description'])}</p>" if about.get("description") else "",
        _fields("Parameters", [_parameter(one) for one in about.get("parameters", ())]),
    ]
    for kind, content in asked.get("content", {}).items():
        told = _content(kind, content, asked.get("description", ""))
        parts.append(f"<h3>Body</h3><p>{told}</p>{_example(name, kind, content, document)}")
    for status, answer in about["responses"].items():
        if status.startswith("2"):
            contents = answer.get("content", {}).items()
            said = answer["description"].removeprefix("Successful Response")
            told = "; ".join(_content(kind, content, said) for kind, content in contents)
            parts.append(f"<h3>Answer {status}</h3><p>{told or escape(said)}</p>")
    refusals = [status for status in about["responses"] if not status.startswith("2")]
    told = f"Refusals: {', '.join(refusals)}" if refusals else ""
    return f'{"".join(parts)}<p class="soft">{told}</p></section>'


def _content(kind: str, content: Json, said: str) -> str:
    shown = f"<code>{escape(kind)}</code> {_type(content.get('schema', {}))}"
    return f"{shown}: {escape(said)}" if said else shown


def _parameter(one: Json) -> tuple[str, Json, bool]:
    about = {**one["schema"], "description": one.get("description", "")}
    return one["name"], about, one.get("required", False)


def _schema(name: str, about: Json) -> str:
    needed = about.get("required", ())
    fields = [(one, told, one in needed) for one, told in about.get("properties", {}).items()]
    told = escape(about.get("description", ""))
    return (
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2><p>{told}</p>'
        f"{_fields('', fields)}</section>"
    )


def _fields(title: str, fields: Sequence[tuple[str, Json, bool]]) -> str:
    """Names, types and what is said of each, as a list."""
    if not fields:
        return ""
    rows = [
        f"<dt><code>{escape(name)}</code> <small>{_type(about)}{_bounds(about)}"
        f"{', required' if required else ''}</small></dt>"
        f"<dd>{escape(about.get('description', ''))}</dd>"
        for name, about, required in fields
    ]
    return f"{f'<h3>{title}</h3>' if title else ''}<dl>{''.join(rows)}</dl>"


def _type(about: Json) -> str:
    """A type in words, with links to those that have names."""
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f'<a href="#{_anchor(name)}">{escape(name)}</a>'
    if members := about.get("anyOf") or about.get("oneOf"):
        return " or ".join(_type(one) for one in members)
    if "const" in about:
        return f"<code>{escape(str(about['const']))}</code>"
    if "enum" in about:
        return " or ".join(f"<code>{escape(str(one))}</code>" for one in about["enum"])
    if about.get("type") == "array":
        return f"list of {_type(about['items'])}"
    if about.get("format") == "binary":
        return "bytes"
    return escape(str(about.get("type", "anything")))


def _bounds(about: Json) -> str:
    names = {"default": "default", "minimum": "at least", "maximum": "at most"}
    parts = [f", {word} {about[name]}" for name, word in names.items() if name in about]
    return escape("".join(parts))


def _example(name: str, kind: str, content: Json, document: Json) -> str:
    """A command that asks, where the schema has examples of what it needs."""
    if kind != "application/json":
        return ""
    body = _sample(content.get("schema", {}), document)
    if not body:
        return ""
    method, _, path = name.partition(" ")
    data = json.dumps(body).replace("'", r"'\''")
    lines = f"curl -X {method} http://HOST:PORT{path} \\\n  -H 'Authorization: Bearer KEY' \\\n"
    lines += f"  -H 'Content-Type: application/json' -d '{data}'"
    return f"<pre>{escape(lines)}</pre>"


def _sample(about: Json, document: Json) -> Any:
    """A value of a schema made of its examples and defaults; what needs neither is left out."""
    if "$ref" in about:
        about = document["components"]["schemas"][about["$ref"].rpartition("/")[2]]
    if about.get("examples"):
        return about["examples"][0]
    if "anyOf" in about:
        return _sample(about["anyOf"][0], document)
    if about.get("type") == "array":
        one = _sample(about["items"], document)
        return [one] if one else []
    if about.get("type") != "object":
        return about.get("default")
    needed = about.get("required", ())
    fields = {
        name: _sample(one, document)
        for name, one in about.get("properties", {}).items()
        if name in needed or "examples" in one
    }
    return {name: value for name, value in fields.items() if value is not None}
