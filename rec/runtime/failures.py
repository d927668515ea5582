"""What ends a run of Ray Train: which errors are not worth a restart, and what people are told."""

from __future__ import annotations

import errno
from typing import Any

from rec.train.engine import TrainError

# what the machine would say again at once: nothing that a restart mends
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)


def end_at_once() -> Any:
    """Ends the run without a restart where a worker raised a TrainError."""
    from ray.train import UserCallback

    class EndAtOnce(UserCallback):
        def after_exception(
            self,
            run_context: Any,  # noqa: ARG002
            worker_exceptions: dict[int, Exception],
        ) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, TrainError):
                    raise error  # in the controller, which does not retry its own errors

    return EndAtOnce()


def reason(error: Exception) -> str:
    """Of what Ray Train raises the line that says why; its log holds the traces."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        line = f"{failure}".strip().splitlines()[-1:]
        return f"worker {rank}: {': '.join([type(failure).__name__, *line])}"
    cause: Exception = getattr(error, "controller_failure", error)
    while isinstance(inner := getattr(cause, "controller_failure", None), Exception):
        cause = inner
    return "".join(f"{cause}".strip().splitlines()[-1:]) or type(cause).__name__
