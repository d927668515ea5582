"""Learning-rate schedules as one pure function of the step."""

from __future__ import annotations

import math

from rec.train.recipe import TrainConfig


def lr_factor(step: int, train: TrainConfig) -> float:
    """What base rates are multiplied with in optimiser step `step`, counted from 0.

    Linear warm-up reaches 1 in step warmup_steps - 1; then cosine (Loshchilov & Hutter 2017) or
    linear decay, which would reach 0 in step `train.steps`, one after the last; or 1.
    """
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return 1.0
    share = (step - train.warmup_steps) / max(train.steps - train.warmup_steps, 1)
    share = min(share, 1.0)
    if train.schedule == "linear":
        return 1.0 - share
    return 0.5 * (1.0 + math.cos(math.pi * share))
