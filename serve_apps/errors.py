"""The one error of the HTTP services: a status, a type for programs and a message for people."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse


class ApiError(Exception):
    """Becomes `{"error": {"type": kind, "message": message}}` with this HTTP status.

    Deployments return it to the gateway as a value, because Ray wraps what is raised.
    """

    def __init__(
        self, status: int, kind: str, message: str, retry_after_s: int | None = None
    ) -> None:
        super().__init__(status, kind, message, retry_after_s)
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s  # sent as a Retry-After header


def invalid(message: str) -> ApiError:
    """422: the request is well-formed JSON and asks for something that cannot be."""
    return ApiError(422, "invalid_request", message)


def refusal(error: ApiError, more: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that says so, with `more` headers."""
    headers = dict(more or {})
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="Raycall: the password is an API key", Bearer'
    # an echo of half a surrogate pair could not be encoded
    message = error.message.encode("utf-8", "backslashreplace").decode()
    return JSONResponse(
        {"error": {"type": error.kind, "message": message}}, error.status, headers=headers
    )
