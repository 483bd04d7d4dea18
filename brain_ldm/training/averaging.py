"""A moving average of the weights, which is published in their place."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from brain_ldm.models import Model
from brain_ldm.training.config import Task
from brain_ldm.training.module import TaskModule


@torch.no_grad()
def moving_average(
    averages: list[Tensor], weights: list[Tensor], decay: float, updates: int
) -> None:
    """Update an exponential moving average, in place, that reaches `decay` gradually.

    Early on the average follows the weights: after n `updates` it uses
    min(decay, (1 + n) / (10 + n)).
    """
    share = 1 - min(decay, (1 + updates) / (10 + updates))
    torch._foreach_lerp_(
        averages, [w.to(a.dtype) for a, w in zip(averages, weights, strict=True)], share
    )


class AveragedModule(TaskModule):
    """A model in training, of whose network the moving average by `task.ema` is published."""

    def __init__(self, model: Model, task: Task, seed: int, max_steps: int) -> None:
        super().__init__(model, task, seed, max_steps)
        self.average = copy.deepcopy(model.network).requires_grad_(False)

    def to(self, *args: object, **options: object) -> "AveragedModule":
        """Move or convert all but the average's format: in bf16 it would lose small changes."""
        average = self._modules.pop("average")
        super().to(*args, **options)
        self.average = average.to(self.device)
        return self

    def update_average(self, updates: int) -> None:
        """Let the average follow the weights, as the one after `updates` others."""
        moving_average(
            list(self.average.parameters()),
            list(self.model.network.parameters()),
            self.task.ema,
            updates,
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model's network be the average for a while."""
        trained, self.model.network = self.model.network, self.average
        try:
            yield
        finally:
            self.model.network = trained

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's weights with the average for its network."""
        averages = {
            name.replace("average.", "model.network.", 1): value
            for name, value in state.items()
            if name.startswith("average.")
        }
        return super().published({**state, **averages})
