"""From a composed config to a model folder: the straight line of `train`."""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from brain_ldm.cohorts.cohort import Cohort, open_cohort
from brain_ldm.errors import InputError
from brain_ldm.models import WEIGHTS, Model, save_model
from brain_ldm.precision import resolve
from brain_ldm.training import autoencoder, brain_age, diffusion, segmenter
from brain_ldm.training.callbacks import StepProgress
from brain_ldm.training.card import model_card
from brain_ldm.training.config import (
    AutoencoderTask,
    BrainAgeTask,
    DiffusionTask,
    SegmenterTask,
    TrainConfig,
)

BUILDERS = {
    AutoencoderTask: autoencoder.build,
    DiffusionTask: diffusion.build,
    SegmenterTask: segmenter.build,
    BrainAgeTask: brain_age.build,
}
NEEDED_COLUMNS = {
    AutoencoderTask: [],
    DiffusionTask: [],
    SegmenterTask: ["ventricular_volume", "brain_volume"],
    BrainAgeTask: ["age"],
}


def train(config: TrainConfig) -> dict[str, float]:
    """Train `config.task` on a cohort and write its model folder to `config.out`.

    Checkpoints, logs and the resolved config lie in `<out>/run`. Returns the final validation
    metrics.

    Raises:
        InputError: before any long work, naming what is wrong.
    """
    out = Path(config.out)
    if (out / WEIGHTS).exists():
        raise InputError(f"{out}: holds a trained model; choose another out or remove the folder")
    need = NEEDED_COLUMNS[type(config.task)]
    if isinstance(config.task, DiffusionTask):
        need = config.task.covariates
    cohort = open_cohort(config.data.cohort, need=need)
    L.seed_everything(config.seed, verbose=False)
    with claimed(out):
        module, data = BUILDERS[type(config.task)](config, cohort, out / "run")
    save_config(config, out / "run")
    trainer = make_trainer(config, out / "run")
    trainer.fit(module, data)
    if trainer.interrupted:
        raise InputError(f"{out}: stopped by the user at step {trainer.global_step}; no model")
    steps = trainer.global_step
    checks = trainer.validate(module, data, verbose=False) if len(data.rows["val"]) else [{}]
    metrics = {name.removeprefix("val/"): float(value) for name, value in checks[0].items()}
    finish(module.model, config, cohort, steps, metrics)
    found = "".join(f", {name} {value:.4g}" for name, value in metrics.items())
    print(f"{out}: {steps} steps; on the validation split{found or ': no rows'}")
    return metrics


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make `<out>/run` while the work is prepared; take it away again if a mistake is found."""
    existed = out.exists()
    try:
        (out / "run").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    try:
        yield
    except InputError:
        if not existed:
            shutil.rmtree(out)
        raise


def make_trainer(config: TrainConfig, run: Path) -> L.Trainer:
    """Return Lightning's trainer: progress on a terminal, metrics and checkpoints in `run`."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # not which devices there are, and tips
    # Lightning's own use of torch; and on two cores workers do not pay.
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # as meant
    options = config.trainer
    return L.Trainer(
        max_steps=options.max_steps,
        accelerator=options.accelerator,
        devices=options.devices,
        precision=resolve(options.precision, options.accelerator),
        logger=CSVLogger(run, name="", version="logs"),
        callbacks=[
            ModelCheckpoint(run / "checkpoints", save_last=True, save_top_k=0),
            StepProgress(),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=options.log_every,
        val_check_interval=options.val_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        # The clip of a GAN is its own: it has two optimisers.
        gradient_clip_val=config.task.gradient_clip
        if isinstance(config.task, DiffusionTask)
        else None,
    )


def save_config(config: TrainConfig, run: Path) -> None:
    """Write the resolved config of the run."""
    data = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    (run / "config.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def finish(
    model: Model, config: TrainConfig, cohort: Cohort, steps: int, metrics: dict[str, float]
) -> None:
    """Write the model folder."""
    model.config.trained_on = {
        "cohort": cohort.description["Name"],
        "cohort_hash": cohort.content_hash(),
        "training_rows": len(cohort.rows("train")),
        "steps": steps,
        "seed": config.seed,
    }
    save_model(model.eval(), Path(config.out), model_card(model, metrics))
