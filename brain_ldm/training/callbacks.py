"""What happens beside training."""

from typing import Any

import lightning as L

from brain_ldm.progress import bar


class StepProgress(L.Callback):
    """One bar over all steps, with the module's main metric and the time left."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the bar at the step that training begins from."""
        self.bar = bar()
        self.bar.start()
        self.task = self.bar.add_task(
            "training", total=trainer.max_steps, completed=trainer.global_step
        )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Move the bar on."""
        if self.bar.disable:
            return  # to read a metric waits for the device
        shown = [f"{name} {value:.4g}" for name, value in trainer.progress_bar_metrics.items()]
        self.bar.update(
            self.task,
            completed=trainer.global_step,
            description=", ".join(["training", *shown]),
        )

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        self.bar.stop()

    def on_exception(self, *_: Any) -> None:
        """Close the bar, so that a message after it stands alone."""
        if hasattr(self, "bar"):
            self.bar.stop()
