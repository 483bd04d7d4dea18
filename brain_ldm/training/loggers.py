"""Where metrics go: always a CSV file, and TensorBoard or Weights & Biases where asked for.

docs/dashboards.md lists the metrics. Their x is the optimiser step.
"""

import csv
import importlib.util
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

import brain_ldm
from brain_ldm.errors import InputError
from brain_ldm.training.config import LoggerConfig, TensorBoardConfig, WandbConfig, WandbMode

WANDB_ID = "wandb_id"  # file in the run folder
GIB = 1024**3


def check_logger(config: LoggerConfig) -> None:
    """Find out whether `make_loggers` will find what it needs; W&B is asked about the account.

    Raises:
        InputError: a package is missing, or W&B knows no account, refuses it or cannot be reached.
    """
    if not first_rank():
        return
    if isinstance(config, TensorBoardConfig) and importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "logger=tensorboard: the package tensorboard is missing: pip install tensorboard, or "
            "choose logger=csv"
        )
    if isinstance(config, WandbConfig) and wandb_mode(config) is WandbMode.online:
        import wandb

        try:
            known = wandb.login(prompt=False)
        except wandb.Error as error:
            raise InputError(
                f"logger=wandb: {one_line(error)}; mend it with `wandb login`, or give "
                "logger.mode=offline"
            ) from None
        if not known:
            raise InputError(
                "logger=wandb: W&B knows no account here: run `wandb login`, set WANDB_API_KEY, or "
                "give logger.mode=offline"
            )


def make_loggers(config: LoggerConfig, run: Path, name: str, resolved: dict) -> list[Logger]:
    """Return Lightning's loggers of a run; a resumed run goes on in what they wrote before.

    Args:
        config: which one beside the CSV file in `run/logs`.
        run: folder of the run; `run/wandb_id` keeps the id of the run at W&B.
        name: of the run, as W&B shows it.
        resolved: the whole config as plain data, which W&B keeps with the code's version.

    Raises:
        InputError: as `check_logger`, or W&B does not take the run.
    """
    check_logger(config)
    loggers: list[Logger] = [GrowingCSVLogger(run, name="", version="logs")]
    if isinstance(config, TensorBoardConfig):
        loggers.append(
            TensorBoardLogger(run, name="", version="tensorboard", default_hp_metric=False)
        )
    if isinstance(config, WandbConfig) and wandb_mode(config) is not WandbMode.disabled:
        loggers.append(_wandb_logger(config, run, name, resolved))
    return loggers


def wandb_mode(config: WandbConfig) -> WandbMode:
    """Return the mode; the environment's WANDB_MODE can take the net away, but not ask for it."""
    wanted = {"offline": WandbMode.offline, "dryrun": WandbMode.offline}
    wanted["disabled"] = WandbMode.disabled
    ranks = [WandbMode.online, WandbMode.offline, WandbMode.disabled]
    environment = wanted.get(os.environ.get("WANDB_MODE", ""), WandbMode.online)
    return max(config.mode, environment, key=ranks.index)


def _wandb_logger(config: WandbConfig, run: Path, name: str, resolved: dict) -> WandbLogger:
    import wandb

    mode = wandb_mode(config)
    kept = run / WANDB_ID
    known = kept.read_text().strip() if kept.is_file() else None
    logger = WandbLogger(
        name=name,
        save_dir=run,
        project=config.project,
        entity=config.entity,
        group=config.group,
        tags=config.tags,
        config={**resolved, "code_version": code_version()},
        allow_val_change=True,  # a resumed run may have been given more steps
        id=known if mode is WandbMode.online else None,  # Lightning adds resume="allow"
        mode=mode.value,
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning sets it, and W&B warns about it
    logger.artifacts = config.artifacts
    if first_rank():
        try:
            number = logger.experiment.id  # begins the run
        except wandb.Error as error:
            raise InputError(
                f"logger=wandb: {one_line(error)}; mend it, or give logger.mode=offline"
            ) from None
        if mode is WandbMode.offline and known is not None:
            print(f"{run}: W&B cannot resume offline; run {known} goes on as a new run, {number}")
        kept.write_text(f"{number}\n")
    return logger


def upload_model(loggers: Sequence[Logger], folder: Path) -> None:
    """Add a finished model folder, without its `run`, to the W&B run that asked for artifacts."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger.artifacts and first_rank():
            import wandb

            run = logger.experiment
            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", run.name), type="model")
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder)
                if path.is_file() and inside.parts[0] != "run":
                    artifact.add_file(str(path), name=inside.as_posix())
            run.log_artifact(artifact)


def close_loggers(loggers: Sequence[Logger], failed: bool = False) -> None:
    """End the W&B run, so that the next training of this process begins its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and first_rank():
            logger.experiment.finish(exit_code=int(failed))


def first_rank() -> bool:
    """Whether this process is global rank zero; known before Lightning's trainer is."""
    # On a further node whose ranks Lightning starts, the rank is not known yet but the node is.
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return rank_zero_only.rank == 0 and ("RANK" in os.environ or int(node) == 0)


def one_line(error: Exception) -> str:
    """Return the first line of an exception's text, without its full stop."""
    return f"{error} ".splitlines()[0].strip().rstrip(".")


def code_version() -> str:
    """Return the version of this package and, in a checkout, the commit: 0.1.0+g1234abc-dirty."""
    folder = Path(brain_ldm.__file__).parent
    try:
        # An installed package may lie within somebody else's repository.
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(folder, "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return brain_ldm.__version__
    return f"{brain_ldm.__version__}+g{commit}"


def _git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()


class _GrowingWriter(ExperimentWriter):
    """Lightning's writer of metrics.csv, which deletes what it finds, made to add to it."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class GrowingCSVLogger(CSVLogger):
    """Lightning's CSVLogger, whose metrics.csv goes on where an earlier part of the run ended."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer."""
        if self._experiment is None:
            self._experiment = _GrowingWriter(self.log_dir)
        return self._experiment


class StepAxis(L.Callback):
    """Let x of every metric be the number of optimiser steps so far.

    Lightning's own x counts batches from 0; a metric named `step` replaces it and is not logged
    itself.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Say which step the training metrics belong to."""
        self.log("step", float(trainer.global_step))

    def on_validation_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Say which step the validation metrics belong to."""
        if trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking:
            # All ranks are at one step: nothing to average, which Lightning would warn about.
            step = float(trainer.global_step)
            self.log("step", step, sync_dist=True, rank_zero_only=True)


class Throughput(L.Callback):
    """Log speed, memory and learning rates; validation and what goes with it is left out.

    Args:
        samples_per_step: rows that one optimiser step sees, over all devices.
        log_every: steps.
    """

    def __init__(self, samples_per_step: int, log_every: int) -> None:
        self.samples_per_step = samples_per_step
        self.log_every = log_every

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Begin to count at the step that training begins from."""
        self.step = trainer.global_step
        self.seconds = 0.0  # of training since that step, up to `since`
        self.since: float | None = None  # None while the clock stands still

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the clock if it stands still; note the learning rates that this step uses."""
        if self.since is None:
            self.since = self._now(trainer)
        self.rates = learning_rates(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Log after every `log_every` steps."""
        step = trainer.global_step
        if step == self.step or step % self.log_every:
            return
        now = self._now(trainer)
        each = (self.seconds + now - self.since) / (step - self.step)
        metrics = {
            "speed/samples_per_second": self.samples_per_step / each,
            "speed/seconds_per_step": each,
            **memory(trainer.strategy.root_device),
            **{f"lr/{name}": rate for name, rate in self.rates.items()},
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)
        self.step, self.seconds, self.since = step, 0.0, now

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop the clock."""
        if getattr(self, "since", None) is not None:
            self.seconds += self._now(trainer) - self.since
            self.since = None

    @staticmethod
    def _now(trainer: L.Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        return time.perf_counter()


def memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that this process has held so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    held = {"memory/resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    if device.type == "cuda":
        held["memory/allocated_gib"] = torch.cuda.max_memory_allocated(device) / GIB
        held["memory/reserved_gib"] = torch.cuda.max_memory_reserved(device) / GIB
    return held


def learning_rates(trainer: L.Trainer) -> dict[str, float]:
    """Return each optimiser's learning rate by the name that its schedule was given.

    One that was given none is `network`, or `0`, `1`, … where there are several.
    """
    names = {id(c.scheduler.optimizer): c.name for c in trainer.lr_scheduler_configs if c.name}
    alone = len(trainer.optimizers) == 1
    return {
        names.get(id(optimizer), "network" if alone else str(number)): optimizer.param_groups[0][
            "lr"
        ]
        for number, optimizer in enumerate(trainer.optimizers)
    }
