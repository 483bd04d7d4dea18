"""From a composed config to a model folder: the straight line of `train`."""

import fcntl
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import lightning as L
import numpy as np
import torch
from safetensors.torch import load_file

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.cohorts.findings import warn, write_findings
from brain_ldm.cohorts.selection import joined, limited
from brain_ldm.cohorts.validation import SeveralErrors, survey, validate
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder, Diffusion, Model, Segmenter, open_model, save_model
from brain_ldm.sweep import RESULT, Interrupted, write_result
from brain_ldm.training import (
    autoencoder,
    brain_age,
    diffusion,
    embedding,
    lsgan,
    segmenter,
    vae_gan,
)
from brain_ldm.training.card import model_card
from brain_ldm.training.checkpoints import Stopped, best_path, step_of, take_over
from brain_ldm.training.config import (
    AutoencoderTask,
    BrainAgeTask,
    DataConfig,
    DiffusionTask,
    EmbeddingTask,
    LSGANTask,
    SegmenterTask,
    TrainConfig,
    VAEGANTask,
)
from brain_ldm.training.data import CohortData
from brain_ldm.training.latent_health import latent_health, table, verdict
from brain_ldm.training.launch import end_ranks, own_processes
from brain_ldm.training.loggers import (
    check_logger,
    close_loggers,
    code_version,
    first_rank,
    make_loggers,
    upload_model,
)
from brain_ldm.training.packed import slug
from brain_ldm.training.pictures import check_pictures
from brain_ldm.training.resume import check_origin, find_checkpoint, resolved, save_origin
from brain_ldm.training.trainer import check_trainer, make_trainer, prepare

BUILDERS = {
    AutoencoderTask: autoencoder.build,
    DiffusionTask: diffusion.build,
    SegmenterTask: segmenter.build,
    BrainAgeTask: brain_age.build,
    EmbeddingTask: embedding.build,
    LSGANTask: lsgan.build,
    VAEGANTask: vae_gan.build,
}
NEEDED_COLUMNS = {
    AutoencoderTask: [],
    SegmenterTask: ["ventricular_volume", "brain_volume"],
    BrainAgeTask: ["age"],
    EmbeddingTask: [],
    LSGANTask: [],
    VAEGANTask: [],
}
LOCK = ".lock"  # in the run's folder: held by the process that trains there
FINDINGS = "findings.tsv"  # in the run's folder: what was found wrong with the cohort
VOXELS = "voxels.json"  # in the cohort's cache: what is known of its images' voxels
HEALTH_ROWS = 32  # images that the report on the latent is made from


def train(config: TrainConfig) -> float | None:
    """Train `config.task` on a cohort and write its model folder to `config.out`.

    Checkpoints, logs and the resolved config lie in `<out>/run`. Returns the best value of the
    validation metric that the task names; None without a validation split, and in processes other
    than the first.

    Raises:
        InputError: what the user can mend; before any long work wherever that can be known.
    """
    out = Path(config.out)
    run = out / "run"
    first = first_rank()
    checkpoint = find_checkpoint(config)
    if checkpoint and (out / RESULT).exists() and step_of(checkpoint) >= config.trainer.max_steps:
        if first:
            print(f"{out}: trained already")
        return json.loads((out / RESULT).read_text())["value"]
    check_trainer(config)
    check_logger(config.logger)
    with interruptible(out), claimed(out), own_processes(config.out):
        L.seed_everything(config.seed, verbose=False)
        folders = [config.data.cohort, *config.data.extra]
        surveys = [survey(folder, needed_columns(config)) for folder in folders]
        # First what may be wrong elsewhere: voxels take minutes.
        if all(seen.cohort is not None for seen in surveys):
            cohort = chosen(config.data, *(seen.cohort for seen in surveys))
            module, data = BUILDERS[type(config.task)](config, cohort)
            data.balance(cohort)
            check_pictures(config.pictures, module.model)
            sources = {}
            if isinstance(module.model, Diffusion):
                sources["autoencoder"] = module.model.autoencoder.hash
            if checkpoint:
                check_origin(config, cohort, sources, checkpoint.parents[1])
        warnings = []
        for seen in surveys:
            memory = Path(config.data.cache) / slug(seen.root) / VOXELS
            warnings += validate(seen, memory, run / FINDINGS, first)
        prepare(module, config)
        if first:
            save_origin(config, cohort, sources, run)
            (run / FINDINGS).unlink(missing_ok=True)
            if warnings:
                warn(warnings)
                write_findings(warnings, run / FINDINGS)
            (out / RESULT).unlink(missing_ok=True)
            if checkpoint:
                take_over(checkpoint, run / "checkpoints")
                print(f"{out}: going on from step {step_of(checkpoint)}")
        loggers = make_loggers(config.logger, run, config.out, resolved(config))
        failed = True
        try:
            trainer, checkpoints = make_trainer(
                config, run, loggers, manual=not module.automatic_optimization
            )
            fit(trainer, module, data, checkpoint, out)
            value = None
            if trainer.is_global_zero:
                value = finish(
                    module.model,
                    config,
                    cohort,
                    [seen.cohort for seen in surveys],
                    data,
                    checkpoints.best,
                    loggers,
                )
            failed = False
        finally:
            close_loggers(loggers, failed)
    return value


def chosen(data: DataConfig, cohort: Cohort, *extra: Cohort) -> Cohort:
    """Return the rows that `data` asks for, of its cohort and of further ones."""
    if data.rows is not None:
        cohort = limited(cohort, data.rows)
    return joined(cohort, extra, data.extra_rows) if extra else cohort


def needed_columns(config: TrainConfig) -> list[str]:
    """Return the columns of participants.tsv that the task cannot do without."""
    if isinstance(config.task, DiffusionTask):
        return config.task.covariates
    return NEEDED_COLUMNS[type(config.task)]


def fit(
    trainer: L.Trainer,
    module: L.LightningModule,
    data: CohortData,
    checkpoint: Path | None,
    out: Path,
) -> None:
    """Train to the last step; end the other ranks too if that fails."""
    try:
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except BaseException as error:
        end_ranks(trainer)
        if isinstance(error, Stopped):
            if not trainer.is_global_zero:
                sys.exit(0)  # the first rank tells
            raise Interrupted(
                f"{out}: stopped at step {error.step}, which is saved; the same command with "
                "resume=auto goes on from there"
            ) from None
        raise


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make `<out>/run`; take it away again if a mistake is found before there is a checkpoint.

    It stays where it holds the list of a cohort's errors.

    Raises:
        InputError: it cannot be made, or another process trains there.
    """
    run = out / "run"
    made = [folder for folder in (run, out, *out.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / LOCK).open("w")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    with lock:
        if first_rank():
            hold(lock, out)
        try:
            yield
        except InputError as error:
            kept = isinstance(error, SeveralErrors) or (run / "checkpoints").exists()
            if made and first_rank() and not kept:
                shutil.rmtree(run, ignore_errors=True)
                for folder in made[1:]:
                    with suppress(OSError):  # another run lies there by now
                        folder.rmdir()
            raise


def hold(lock: IO, out: Path) -> None:
    """Lock a file until it is closed or this process ends, however it does.

    Raises:
        InputError: another process holds it, which trains in `out`.
    """
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise InputError(
            f"{out}: another process trains there; wait for its end, or choose another out"
        ) from None
    except OSError:
        pass  # a file system without locks


@contextmanager
def interruptible(out: Path) -> Iterator[None]:
    """Let signals that ask to stop say so, also before training listens to them and after."""

    def stop(*_: object) -> None:
        raise Interrupted(f"{out}: stopped; the same command with resume=auto goes on")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(
    model: Model,
    config: TrainConfig,
    cohort: Cohort,
    whole: list[Cohort],
    data: CohortData,
    best: dict[str, Any] | None,
    loggers: list,
) -> float | None:
    """Write the model folder with the best weights, and say how good they are.

    `whole` are the cohorts that the training rows of `cohort` were taken from.
    """
    out, metric = Path(config.out), config.task.best
    if best is None:
        raise InputError(
            f"{out}: val/{metric} was never a finite number; training diverged, lower the "
            "learning rate"
        )
    if isinstance(model, Diffusion):  # the one that was trained may lie in shards
        model = Diffusion(model.config, open_model(config.task.autoencoder, Autoencoder))
    model.load_state_dict(
        load_file(best_path(out / "run" / "checkpoints", best["step"])), strict=False
    )
    model = model.float().cpu().eval().requires_grad_(False)
    model.config.trained_on = {
        "cohort": cohort.description["Name"],
        "cohort_hash": whole[0].content_hash(),
        "training_rows": len(data.rows["train"]),
        "steps": config.trainer.max_steps,
        "best_step": best["step"],
        "seed": config.seed,
        "code": code_version(),
    }
    model.config.trained_on["made_by"] = made_by(whole[0])
    if len(whole) > 1:
        model.config.trained_on["extra"] = {
            str(other.root): {
                "cohort_hash": other.content_hash(),
                "made_by": made_by(other),
                "rows": sum(home == other.root for home in cohort.guests.values()),
            }
            for other in whole[1:]
        }
    if isinstance(model, Segmenter):
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        segmenter.calibrate(model, cohort)
        best = {**best, "metrics": segmenter.volume_errors(model, cohort)}
        model.cpu()
    health = None
    if isinstance(model, Autoencoder):
        health = examined(model, data, loggers, config.trainer.max_steps)
    save_model(model, out, model_card(model, metric, best["metrics"], health))
    upload_model(loggers, out)
    value = best["metrics"].get(metric)
    write_result(out, f"val/{metric}", value, best["step"])
    found = ", ".join(f"{name} {number:.4g}" for name, number in best["metrics"].items())
    print(
        f"{out}: {config.trainer.max_steps} steps; "
        + (f"best at step {best['step']}: {found}" if found else "no validation rows")
    )
    return value


def made_by(cohort: Cohort) -> str | None:
    """Return the name of the program that made a cohort."""
    return (cohort.description.get("GeneratedBy") or [{}])[0].get("Name")


def examined(model: Autoencoder, data: CohortData, loggers: list, step: int) -> str:
    """Print, log and return what the latent is like and whether it is fit for diffusion."""
    rows = data.rows["val"] if len(data.rows["val"]) else data.rows["train"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = (
        torch.from_numpy(np.array(rows.arrays["image"][row])).float()[None, None]
        for row in range(min(len(rows), HEALTH_ROWS))
    )
    health = latent_health(model.to(device), images, device)
    model.cpu()
    for logger in loggers:
        logger.log_metrics(health.to_dict(), step)
        logger.save()
    report = "\n".join([table(health), "", *verdict(health)])
    print(report)
    return report
