"""What the modules of all tasks share: logging over ranks, and which weights are published."""

import lightning as L
import torch
from torch import Tensor, nn

from brain_ldm.errors import InputError
from brain_ldm.models import Model
from brain_ldm.training.config import Task


class TaskModule(L.LightningModule):
    """A model in training.

    Args:
        model: what becomes the model folder.
        task: its options.
        seed: of every random draw, together with the step and the row.
        max_steps: of the training, for the learning-rate schedules.
    """

    judges: tuple[str, ...]  # validation metrics that may choose the best step: lower is better
    frozen: tuple[str, ...] = ()  # parts that checkpoints leave out: they are opened from elsewhere

    def __init__(self, model: Model, task: Task, seed: int, max_steps: int) -> None:
        super().__init__()
        if task.best not in self.judges:
            raise InputError(
                f"task.best is '{task.best}'; give a metric whose lower values are better: "
                f"{', '.join(self.judges)}"
            )
        self.model = model
        self.task = task
        self.seed = seed
        self.max_steps = max_steps
        # Taken now: once the networks are in shards, to ask for it is a matter of all ranks.
        self.weight_names = {f"model.{name}": name for name in model.weights()}
        self.noted: list[dict[str, Tensor]] = []
        self.strict_loading = False  # since the frozen parts are left out

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that train."""
        return [self.model.network]

    def fed(self, images: Tensor) -> Tensor:
        """Return images (B, X, Y, Z) as the network takes them: (B, 1, X, Y, Z), in its format."""
        return images.unsqueeze(1).to(next(self.model.network.parameters()).dtype)

    def note(self, values: dict[str, Tensor]) -> None:
        """Keep a batch's training metrics until the step that it belongs to."""
        self.noted.append(values)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log what was noted in the step's batches."""
        if self.noted:
            self.log_step(self.noted, shown=next(iter(self.noted[0])))
            self.noted = []

    def log_step(self, batches: list[dict[str, Tensor]], shown: str = "") -> None:
        """Log training metrics as means over a step's batches and ranks.

        Args:
            batches: metrics of each batch by name.
            shown: name of the one that the progress bar shows.
        """
        means = torch.stack(
            [torch.stack([b[name].detach().float() for b in batches]).mean() for name in batches[0]]
        )
        means = self.trainer.strategy.reduce(means, reduce_op="mean")
        for name, mean in zip(batches[0], means, strict=True):
            self.log(f"train/{name}", mean, prog_bar=name == shown)

    def log_validation(self, values: dict[str, Tensor], rows: int) -> None:
        """Log a batch's mean metrics; they become means over all rows of all ranks."""
        for name, value in values.items():
            self.log(
                f"val/{name}",
                value,
                prog_bar=name == self.task.best,
                on_epoch=True,
                sync_dist=True,
                batch_size=rows,
            )

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's weights, in 32 bits, from this module's whole state dict."""
        names = self.weight_names
        return {names[n]: v.detach().cpu().float() for n, v in state.items() if n in names}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Count batches as this run's accumulation does, which may be another than before."""
        if not self.automatic_optimization:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        shift = batches - progress["total"]["ready"]
        for part in ("total", "current"):
            for name in ("ready", "started", "processed", "completed"):
                progress[part][name] += shift

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Leave the frozen parts out."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            name: value for name, value in state.items() if not name.startswith(self.frozen)
        }
