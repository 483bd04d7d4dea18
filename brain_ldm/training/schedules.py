"""Learning-rate schedules."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from brain_ldm.training.config import Schedule


def make_schedule(optimizer: Optimizer, schedule: Schedule, steps: int) -> LRScheduler:
    """Return the scheduler that takes `optimizer` through `steps`, to be stepped with it."""
    if schedule is Schedule.one_cycle:
        peak = optimizer.param_groups[0]["lr"]
        # Momentum stays: betas that move would be a second schedule.
        return OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    return LambdaLR(optimizer, lambda step: 1.0)
