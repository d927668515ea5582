"""The page at /: items, their neighbours, and users' recommendations, for people.

Written by hand, without a build step; it asks this service alone, and its policy lets it load from
nowhere else.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Annotated

from fastapi import FastAPI, Header, Response

_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_files() -> dict[str, bytes]:
    """The page's files by name."""
    return {
        one.name: one.read_bytes()
        for one in resources.files(__name__).iterdir()
        if one.name.rpartition(".")[2] in _MEDIA_TYPES
    }


def add_page(app: FastAPI) -> None:
    """Add / and the files that it needs, below /explorer/, to a service that tells of items."""
    for name, data in page_files().items():
        path = "/" if name == "index.html" else f"/explorer/{name}"
        _add_file(app, path, data, _MEDIA_TYPES[name.rpartition(".")[2]])


def _add_file(app: FastAPI, path: str, data: bytes, media_type: str) -> None:
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    headers = {
        "ETag": tag,
        "Cache-Control": "no-cache",  # asked for again each time, and sent again if it changed
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    @app.get(path, include_in_schema=False)
    async def file(if_none_match: Annotated[str | None, Header()] = None) -> Response:
        if if_none_match == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=media_type, headers=headers)
