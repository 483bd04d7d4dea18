"""Checkpoints to go on from, written whole or not at all, and the best weights so far."""

import math
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import save_file

from brain_ldm.errors import InputError

KEPT = 2  # checkpoints: the newest, and the one before in case the newest is damaged


class Stopped(Exception):
    """Training was asked to stop and has saved a checkpoint at `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, then renames; reads tensors and plain data alone.

    Under FSDP Lightning reads by itself.
    """

    def save_checkpoint(self, checkpoint: dict, path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint."""
        write_whole(Path(path), lambda temporary: torch.save(checkpoint, temporary))

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without running code from it."""
        # Mapped, so that the processes of a computer share one copy.
        return torch.load(path, map_location=map_location, weights_only=True, mmap=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name beside `path`, then rename it.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        temporary.unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: cannot be written ({reason}); make room, then give the same command with "
            "resume=auto"
        ) from None


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the file of the checkpoint after `step` steps."""
    return folder / f"step-{step:09d}.ckpt"


def best_path(folder: Path, step: int) -> Path:
    """Return the file of the weights that were published after `step` steps."""
    return folder / f"best-{step:09d}.safetensors"


def step_of(path: Path) -> int:
    """Return the step that a file's name tells."""
    return int(path.stem.split("-")[1])


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, newest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def newest_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint that is not damaged, or None where there is no checkpoint.

    Raises:
        InputError: all are damaged.
    """
    found = checkpoints_in(folder)
    for path in found:
        if is_whole(path):
            return path
        print(f"warning: {path} is damaged; going on from the one before it")
    if found:
        raise InputError(f"{folder}: every checkpoint is damaged; remove the run and begin anew")
    return None


def is_whole(path: Path) -> bool:
    """Whether every part of a checkpoint has the checksum that it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def take_over(checkpoint: Path, folder: Path) -> None:
    """Copy the best weights that lie beside another run's checkpoint into `folder`."""
    folder.mkdir(exist_ok=True)
    if checkpoint.parent.resolve() != folder.resolve():
        for path in checkpoint.parent.glob("best-*.safetensors"):
            shutil.copy2(path, folder)


class Checkpoints(L.Callback):
    """Saves what is needed to go on, and the weights of the best validation so far.

    A checkpoint is saved after a step's validation where there is one, so that going on neither
    repeats nor skips it. SIGTERM, SIGUSR1 (SLURM's word ahead of the time limit) or Ctrl-C lets
    the step end, on all ranks alike, and saves; a second Ctrl-C stops at once.

    Args:
        folder: of the checkpoints.
        every: steps between two checkpoints.
        validation: steps between two validations.
        best: name of the validation metric that decides; lower is better.
    """

    def __init__(self, folder: Path, every: int, validation: int, best: str) -> None:
        self.folder = folder
        self.every = every
        self.validation = validation
        self.metric = best
        self.best: dict[str, Any] | None = None  # step and validation metrics
        self.before: dict[str, Any] | None = None  # the best when the last checkpoint was saved
        self.asked_to_stop = False

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoints keep of this."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what a checkpoint kept."""
        self.best = self.before = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Listen for signals, in place of Lightning, whose handler talks to other ranks at once."""
        self.step = trainer.global_step
        self.validates = sum(trainer.num_val_batches) > 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.asked_to_stop:
            raise KeyboardInterrupt
        self.asked_to_stop = True

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Save where a checkpoint is due and no validation follows."""
        if trainer.global_step == self.step:
            return  # within a step that takes several batches
        self.step = trainer.global_step
        # Lightning validates once more when it is told to stop.
        trainer.should_stop = self.step == trainer.max_steps
        due = self.step % self.validation == 0 or trainer.should_stop
        if not (due and self.validates):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep the weights if they are the best so far; save where a checkpoint is due."""
        metrics = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        limit = math.inf if self.best is None else self.best["metrics"][self.metric]
        if metrics[self.metric] < limit:  # never so for NaN
            self._keep(trainer, module, metrics)
        self._save_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Without a validation split the last weights are the best known."""
        if not self.validates:
            self._keep(trainer, module, {})

    def _keep(
        self, trainer: L.Trainer, module: L.LightningModule, metrics: dict[str, float]
    ) -> None:
        self.best = {"step": trainer.global_step, "metrics": metrics}
        state = trainer.strategy.lightning_module_state_dict()  # a matter of all ranks under FSDP
        if trainer.is_global_zero:
            path = best_path(self.folder, trainer.global_step)
            write_whole(path, lambda temporary: save_file(module.published(state), temporary))

    def _save_if_due(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        last = step == trainer.max_steps
        stop = self.asked_to_stop
        if trainer.world_size > 1:  # a signal does not reach all ranks within the same step
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if not (step % self.every == 0 or last or stop):
            return
        trainer.save_checkpoint(checkpoint_path(self.folder, step))
        if trainer.is_global_zero:
            for path in checkpoints_in(self.folder)[KEPT:]:
                path.unlink()
            needed = [best_path(self.folder, b["step"]) for b in (self.best, self.before) if b]
            for path in self.folder.glob("best-*.safetensors"):
                if path not in needed:
                    path.unlink()
        self.before = self.best
        if stop and not last:
            raise Stopped(step)
