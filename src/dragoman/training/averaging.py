"""A running average of the weights, which is what is validated and kept."""

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def average_weights(decay: float) -> WeightAveraging:
    """Return the callback that keeps an exponential average of the weights, update by update.

    The average forgets at `decay` (in [0, 1)), but in the first steps faster, at
    (1 + n) / (10 + n) after n of them, so that it never holds on to the random start.
    Lightning puts the average in the place of the weights for validations, checkpoints, and at the
    end. Source: Morales-Brotons et al. 2024; the warm-up is that of TensorFlow's moving average.
    """
    return WeightAveraging(use_buffers=False, multi_avg_fn=_Average(decay))


class _Average:
    """The update of the average; a class, because processes that are spawned pickle it."""

    def __init__(self, decay: float) -> None:
        self._decay = decay

    @torch.no_grad()
    def __call__(self, averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1.0 - min(self._decay, (1 + n) / (10 + n)))
