"""What a gateway makes of a deployment's answer, of its absence, and of a late one."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from serve_apps.errors import ApiError, invalid


class Response:
    """As Serve's: awaited, or cancelled by whom it is of no more use to."""

    def __init__(self, answer: Any, after_s: float) -> None:
        self._answer, self._after_s, self.cancelled = answer, after_s, False

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(self._after_s).__await__()
        if isinstance(self._answer, Exception) and not isinstance(self._answer, ApiError):
            raise self._answer
        return self._answer

    def cancel(self) -> None:
        self.cancelled = True


class Method:
    """A deployment's method that answers after a while."""

    def __init__(self, answer: Any, after_s: float = 0.0) -> None:
        self.response = Response(answer, after_s)
        self.asked: tuple[Any, ...] = ()

    def remote(self, *args: Any) -> Response:
        self.asked = args
        return self.response


def ask(timeout_s: float, method: Method, *args: Any) -> Any:
    from serve_apps.deployment import ask

    return asyncio.run(ask(timeout_s, method, *args))


def test_an_answer_comes_back_and_nothing_is_cancelled() -> None:
    method = Method([1, 2])
    assert ask(5, method, "a", 3) == [1, 2]
    assert method.asked == ("a", 3)
    assert not method.response.cancelled


def test_a_late_call_is_refused_and_cancelled() -> None:
    method = Method("never", after_s=60)
    with pytest.raises(ApiError, match=r"no answer within 0\.05 s") as refusal:
        ask(0.05, method)
    assert refusal.value.status == 504
    assert method.response.cancelled


def test_what_goes_wrong_is_an_api_error() -> None:
    from ray.exceptions import ActorUnavailableError
    from ray.serve.exceptions import BackPressureError

    for answer, status, kind in (
        (invalid("k: 0"), 422, "invalid_request"),
        (BackPressureError(num_queued_requests=9, max_queued_requests=8), 503, "overloaded"),
        (ActorUnavailableError("gone", None), 503, "unavailable"),
    ):
        with pytest.raises(ApiError) as refusal:
            ask(5, Method(answer))
        assert (refusal.value.status, refusal.value.kind) == (status, kind)
        assert (refusal.value.retry_after_s is not None) == (status == 503)


@pytest.mark.parametrize(("given", "device"), [(["0"], "cuda"), ([], "cpu")])
def test_a_model_runs_on_a_gpu_that_its_replica_was_given(
    monkeypatch: pytest.MonkeyPatch, given: list[str], device: str
) -> None:
    """And on no other, though it sees those of the machine."""
    import ray
    import torch

    from serve_apps.deployment import own_device

    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": given, "TPU": []})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device() == device
