"""What `rec.client` asks the services, and how it reads their answers and refusals."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import httpx2
import numpy as np

from rec import wire

R = TypeVar("R")

MAX_WAIT_S = 10.0  # where the service asks for more than that, the caller has to decide
_WAIT_S = 0.2  # where it says nothing
_NOT_OURS = "http_error"  # code of a refusal that has not the service's form
_NO_ROUTE = "no_route"  # and of a proxy that knows of no service there, or not yet


class RequestError(RuntimeError):
    """A call that has no answer or was refused.

    Attributes:
        status: of HTTP; None where nothing answered.
        code: for programs: the service's `type`, or "no_answer", "timeout",
            "malformed_answer", "no_route" (Serve's proxy has no service there, or does not know of
            it yet), "http_error" (a proxy's other errors).
        message: for people.
        request_id: as in the service's log.
        retry_after_s: what the service asked to wait; None where it did not.
    """

    def __init__(
        self,
        status: int | None,
        code: str,
        message: str,
        request_id: str,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, code, message, request_id, retry_after_s)
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        status = "" if self.status is None else f"{self.status} "
        return f"{status}{self.code}: {self.message} (request {self.request_id})"


class Content(NamedTuple):
    """Something to embed: a text, a picture file's bytes, or both."""

    text: str | None = None
    image: bytes | None = None


AnyContent: TypeAlias = str | bytes | Content  # a text, a picture file's bytes, or both


class Vectors(NamedTuple):
    vectors: np.ndarray  # (B, D) float32 of unit norm
    model_version: str


class Neighbours(NamedTuple):
    ids: list[str]  # the best first
    scores: np.ndarray  # (n,) float32, cosine similarity


class Found(NamedTuple):
    results: list[Neighbours]  # one a query
    model_version: str
    index_version: str


class Recommended(NamedTuple):
    ids: list[str]  # the best first
    scores: np.ndarray  # (n,) float32
    source: str  # "model" or "popular"
    num_known: int  # events of the history whose items the model knows
    num_unknown: int
    model_version: str
    index_version: str


class Call(NamedTuple, Generic[R]):
    method: str
    path: str
    read: Callable[[httpx2.Response], R]
    body: dict[str, Any] | bytes | None = None
    params: dict[str, str | int] | None = None
    again: bool = True  # whether asking twice does no harm

    def request(self, http: httpx2.Client | httpx2.AsyncClient) -> httpx2.Request:
        headers = {"X-Request-ID": uuid.uuid4().hex}  # of both tries: they are one in the log
        ask = partial(http.build_request, self.method, self.path, params=self.params)
        if isinstance(self.body, bytes):
            return ask(content=self.body, headers=headers | {"Content-Type": wire.MEDIA_TYPE})
        return ask(json=self.body, headers=headers)

    def answer(self, response: httpx2.Response) -> R:
        """Raises RequestError."""
        if not response.is_success:
            raise _refused(response)
        try:
            return self.read(response)
        except (ValueError, KeyError, TypeError) as error:
            message = f"{response.request.url}: an answer of another form: {error!r}"
            raise RequestError(
                response.status_code, "malformed_answer", message, _request_id(response.request)
            ) from error


def plain(path: str, body: dict[str, Any] | None) -> Call[dict[str, Any]]:
    again = body is None or "/admin/" not in path  # to go back twice is to stay
    return Call("GET" if body is None else "POST", path, httpx2.Response.json, body, again=again)


def embed(contents: Sequence[AnyContent], model: str | None) -> Call[Vectors]:
    def read(response: httpx2.Response) -> Vectors:
        rows = wire.unpack_rows(response.content, len(response.content) // (4 * len(contents)))
        return Vectors(rows, response.headers[wire.MODEL_HEADER])

    packed = wire.pack_contents([_content(one) for one in contents])
    return Call("POST", "/v1/embed/raw", read, packed, _params(model))


def knn(vectors: np.ndarray, k: int, model: str | None, index: str | None) -> Call[Found]:
    rows = np.asarray(vectors)
    if rows.ndim != 2:
        raise ValueError(f"vectors of shape {rows.shape}, expected (B, D)")

    def read(response: httpx2.Response) -> Found:
        results = wire.unpack_found(response.content, len(rows))
        versions = response.headers[wire.MODEL_HEADER], response.headers[wire.INDEX_HEADER]
        return Found([Neighbours(*one) for one in results], *versions)

    return Call("POST", "/v1/knn/raw", read, wire.pack_rows(rows), _params(model, index, k=k))


def knn_content(
    contents: Sequence[AnyContent], k: int, model: str | None, index: str | None
) -> Call[Found]:
    return Call("POST", "/v1/knn", _found, _body(model, index, queries=_contents(contents), k=k))


def knn_items(
    item_ids: Sequence[str], k: int, exclude_self: bool, model: str | None, index: str | None
) -> Call[Found]:
    queries = [{"item_id": item_id} for item_id in item_ids]
    body = _body(model, index, queries=queries, k=k, exclude_self=exclude_self)
    return Call("POST", "/v1/knn", _found, body)


def recommend(
    history: Sequence[str] | None, user: str | None, more: Mapping[str, Any]
) -> Call[Recommended]:
    def read(response: httpx2.Response) -> Recommended:
        body = response.json()
        body["scores"] = np.asarray(body["scores"], np.float32)
        return Recommended(**{name: body[name] for name in Recommended._fields})

    body: dict[str, Any] = dict(more)
    if history is not None:
        body["history"] = list(history)
    if user is not None:
        body["user"] = user
    return Call("POST", "/v1/recommend", read, body)


def failure_of(
    error: httpx2.TransportError | RequestError, request: httpx2.Request
) -> RequestError:
    """What went wrong, as the one error of the client."""
    if isinstance(error, RequestError):
        return error
    late = isinstance(error, httpx2.TimeoutException) and not isinstance(
        error, httpx2.ConnectTimeout
    )
    message = f"{request.url}: no answer: {error or type(error).__name__}"
    made = RequestError(None, "timeout" if late else "no_answer", message, _request_id(request))
    made.__cause__ = error
    return made


class Tries:
    """When a call is to be tried again."""

    def __init__(self, again: bool, patience_s: float) -> None:
        self._until = time.monotonic() + patience_s
        self._again = again

    def wait_of(self, failure: RequestError) -> float | None:
        """Seconds after which to try again; None: no more."""
        nobody = isinstance(failure.__cause__, httpx2.ConnectError) or failure.code == _NO_ROUTE
        if nobody and time.monotonic() < self._until:
            return _WAIT_S
        again, self._again = self._again, False
        return wait_of(failure) if again else None


def wait_of(failure: RequestError) -> float | None:
    """Seconds after which to try again; None where that would help nobody.

    A 500 or 502 that is not of the service's own form is a proxy's, of a replica that has gone.
    """
    if failure.status in (429, 503):
        wait_s = _WAIT_S if failure.retry_after_s is None else failure.retry_after_s
        return wait_s if wait_s <= MAX_WAIT_S else None
    gone = failure.status in (500, 502) and failure.code == _NOT_OURS
    return _WAIT_S if gone or failure.code in ("no_answer", _NO_ROUTE) else None


def _refused(response: httpx2.Response) -> RequestError:
    try:
        detail = response.json()["error"]
        code, message = str(detail["type"]), str(detail["message"])
    except (ValueError, KeyError, TypeError):  # not the service's, perhaps a proxy's
        code, message = _NOT_OURS, response.text[:200].strip() or response.reason_phrase
        # Serve's proxies; one that has been started anew is told of routes a little later
        if response.status_code == 404 and "/-/routes for available routes" in response.text:
            code = _NO_ROUTE
    request_id = _request_id(response.request)
    wait_s = _seconds(response.headers.get("Retry-After"))
    return RequestError(response.status_code, code, message, request_id, wait_s)


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not taken."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None


def _request_id(request: httpx2.Request) -> str:
    return request.headers["X-Request-ID"]


def _versions(model: str | None, index: str | None) -> dict[str, str]:
    asked = {"model_version": model, "index_version": index}
    return {name: version for name, version in asked.items() if version is not None}


def _params(model: str | None, index: str | None = None, **params: int) -> dict[str, str | int]:
    return {**params, **_versions(model, index)}


def _body(model: str | None, index: str | None, **fields: Any) -> dict[str, Any]:
    return fields | _versions(model, index)


def _content(content: AnyContent) -> Content:
    if isinstance(content, str):
        return Content(text=content)
    return content if isinstance(content, Content) else Content(image=content)


def _contents(contents: Sequence[AnyContent]) -> list[dict[str, str]]:
    found = []
    for text, image in map(_content, contents):
        one = {} if text is None else {"text": text}
        if image is not None:
            one["image"] = base64.b64encode(image).decode()
        found.append(one)
    return found


def _found(response: httpx2.Response) -> Found:
    body = response.json()
    results = [
        Neighbours(one["ids"], np.asarray(one["scores"], np.float32)) for one in body["results"]
    ]
    return Found(results, body["model_version"], body["index_version"])
