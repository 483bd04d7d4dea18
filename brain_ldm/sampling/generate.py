"""Draw a synthetic cohort from a diffusion model or from the generator of a GAN.

Batches are fixed from the start: the rows, one after the other. A process takes every n-th batch
and computes it whole, also where some of its brains are there already. So a brain comes out of one
and the same computation whichever shard draws it and however often that was stopped: to the bit.
"""

from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import brain_ldm
from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.device import open_device
from brain_ldm.diffusion.config import DDIMConfig
from brain_ldm.diffusion.grid import timesteps
from brain_ldm.errors import InputError
from brain_ldm.models import Diffusion, Generator, config_hash, open_model
from brain_ldm.precision import resolve
from brain_ldm.progress import track
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.data_card import add_report, needs_card, write_card
from brain_ldm.sampling.drawing import autocast, draw_batches
from brain_ldm.sampling.editing import open_source, provenance
from brain_ldm.sampling.manifest import kept
from brain_ldm.sampling.parts import Part, conclude, open_parts
from brain_ldm.sampling.ranks import own_device, share_of
from brain_ldm.sampling.requests import requested_rows, unconditional_rows
from brain_ldm.sampling.tables import source_hash
from brain_ldm.sampling.writers import Writers, enough_writers

EXTRA_COLUMNS = {
    "seed": {"Description": "Seed of the brain's starting noise"},
    "source_id": {"Description": "Row of the given table or cohort that it was asked for after"},
    "subject": {"Description": "Person whose brain was changed"},
}
# What a cohort says of its model's training, as far as the model's folder does.
TRAINED_ON = ("cohort", "bundle", "cohort_hash", "training_rows", "extra")


def sample_cohort(config: SampleConfig) -> None:
    """Write the cohort that `config` asks for to `config.out`; go on with one that was stopped.

    participants.tsv holds the covariates that were asked for, not measured ones. The process that
    finds all brains there finishes the cohort.

    Raises:
        InputError: before any long work, naming what is wrong; or when the disk is full.
    """
    share, shares = share_of(config.shard)
    check_options(config)
    model = open_model(config.model, Diffusion, Generator)
    device = own_device(open_device(config.device))
    names: list[str] = []
    source = None
    if isinstance(model, Diffusion):
        check_sampler(config, model)
        rows = requested_rows(config, model.encoder)
        names = model.encoder.names
        if config.from_ is not None:
            source = open_source(config, model, rows)
    else:
        rows = unconditional_rows(config)
    extra = {name: text for name, text in EXTRA_COLUMNS.items() if name in rows}
    others = [name for name in names if name not in COVARIATES]
    extra |= {name: {"Description": "Covariate that was asked for"} for name in others}
    for name in [name for name in COVARIATES if name in rows and name not in names]:
        units = {"Units": COVARIATES[name].unit} if COVARIATES[name].unit else {}
        extra[name] = {"Description": "Of the given table; the model does not know it", **units}
    made_by = _generated_by(config, model, source, device)

    def open_writer(root: Path, special: dict) -> CohortWriter:
        return CohortWriter(
            root,
            "Synthetic brains",
            made_by | special,
            model.grid,
            synthetic=True,
            extra_columns=extra,
            storage=config.storage.value,
        )

    check_report(config, len(rows))
    with _disk_errors(config.out):
        parts = open_parts(config, rows["participant_id"].tolist(), open_writer)
    starts = range(0, len(rows), config.batch_size)
    if len(starts) < shares:
        print(
            f"{config.out}: {len(starts)} batches for {shares} processes; "
            "a smaller batch_size has some for each"
        )
    mine = [
        rows.iloc[start : start + config.batch_size].reset_index(drop=True)
        for start in starts[share::shares]
    ]
    with _disk_errors(config.out):
        writing = _missing(parts, mine)
        before = all(part.concluded for part in parts)
        if writing:
            mine = [batch for batch in mine if batch["participant_id"].isin(writing).any()]
            _draw_and_write(model, mine, writing, config, device, source)
        left = sum(conclude(part, names, model.hash, config.licence) for part in parts)
        if left:
            print(f"{config.out}: {left} of {len(rows)} brains are left to other shards")
            return
        roots = [part.writer.root for part in parts]
        for root in roots:
            if needs_card(root, config.licence):  # of a set that was finished before
                write_card(root, config.licence)
        if config.report is not None:
            add_report(roots, Path(config.report))
    print(f"{config.out}: {'done already' if before else f'{len(rows)} brains'}")


def check_options(config: SampleConfig) -> None:
    """Refuse what makes no sense.

    Raises:
        InputError: a number is too small, or no model is given.
    """
    if config.model is None:
        raise InputError("'model' must be given: add model=…, a folder that train wrote")
    for name, least in (("seed", 0), ("batch_size", 1), ("folder_size", 1), ("writers", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise InputError(f"{name} is {value}; give at least {least}")


def check_report(config: SampleConfig, brains: int) -> None:
    """Refuse a report for a set that is not finished, before a folder is made for it."""
    part = "" if config.folder_size is None else "part-*/"
    finished = list(Path(config.out).glob(f"{part}dataset_description.json"))
    if config.report is not None and len(finished) < -(-brains // (config.folder_size or brains)):
        raise InputError(f"report={config.report}: {config.out} is not finished; draw it first")


def check_sampler(config: SampleConfig, model: Diffusion) -> None:
    """Refuse steps that the model's schedule does not have, and what no sampler can do."""
    sampler = config.sampler
    try:
        timesteps(sampler.grid, sampler.steps, len(model.alphas_cumprod))
    except ValueError as error:
        raise InputError(f"sampler: {error}") from None
    if isinstance(sampler, DDIMConfig) and not 0 <= sampler.eta <= 1:
        raise InputError(f"sampler.eta is {sampler.eta}; give 0 to 1")
    if not 0 <= config.rescale <= 1:
        raise InputError(f"rescale is {config.rescale}; give 0 to 1")


def _generated_by(
    config: SampleConfig, model: Diffusion | Generator, source: Cohort | None, device: torch.device
) -> dict:
    """Return what the cohort depends on, as BIDS' GeneratedBy."""
    taught = model.config.trained_on
    made_by = {
        "Name": "brain_ldm sample",
        "Version": brain_ldm.__version__,
        "ModelHash": model.hash,
        "ConfigHash": config_hash(model),
        "TrainedOn": {name: taught[name] for name in TRAINED_ON if name in taught},
        "Seed": config.seed,
        "Storage": config.storage.value,
        # On these the last bits depend: shards that differ in them would not make one set.
        "BatchSize": config.batch_size,
        "Precision": resolve(config.precision, device.type),
    }
    if isinstance(model, Generator):
        return {**made_by, "N": config.n}
    sampler = {
        name: value if isinstance(value, int | float) else value.name
        for name, value in vars(config.sampler).items()
    }
    asked = {
        "Table": config.table,
        "Population": config.population,
        "Grid": config.grid,
        "Split": config.split,
        "N": config.n,
        "Sweep": config.sweep,
        "Noises": config.noises if config.sweep else None,
        "Ranges": config.ranges,
        "Covariates": config.covariates,
        "Extrapolate": config.extrapolate or None,
        "SourceHash": source_hash(config, model.encoder),
        **({} if source is None else provenance(config, source)),
    }
    return {
        **made_by,
        "AutoencoderHash": model.autoencoder.hash,
        "Sampler": {"Name": type(config.sampler).__name__.removesuffix("Config"), **sampler},
        "Guidance": config.guidance,
        "Rescale": config.rescale,
        **{name: value for name, value in asked.items() if value is not None},
    }


def _missing(parts: list[Part], batches: list[pd.DataFrame]) -> dict[str, CohortWriter]:
    """The brains of these batches that are not there, each with the writer of its cohort.

    A finished cohort that lacks some takes them again.
    """
    mine = {pid for batch in batches for pid in batch["participant_id"]}
    missing = {}
    for part in parts:
        its = [pid for pid in part.participants if pid in mine]
        there = kept(part.writer, its)
        if len(there) < len(its):
            part.writer.open_work()
        missing |= {pid: part.writer for pid in its if pid not in there}
    return missing


def _draw_and_write(
    model: Diffusion | Generator,
    batches: list[pd.DataFrame],
    writing: dict[str, CohortWriter],
    config: SampleConfig,
    device: torch.device,
    source: Cohort | None,
) -> None:
    """Draw whole batches, and write those of their brains that have a writer in `writing`."""
    processes = enough_writers(device.type) if config.writers is None else config.writers
    try:
        with Writers(processes) as writers, torch.inference_mode(), autocast(config, device):
            model.to(device)
            drawn = draw_batches(model, track(batches, "sampling"), config, device, source)
            for batch, images in drawn:
                for row, image in zip(batch.to_dict("records"), images, strict=True):
                    if not np.isfinite(image).all():
                        raise InputError(
                            f"{config.out}: {row['participant_id']} came out as numbers that are "
                            "none; give less guidance, precision=32-true, or another model"
                        )
                    if row["participant_id"] in writing:
                        writers.put(writing[row["participant_id"]].add, row, image)
    except torch.OutOfMemoryError:
        raise InputError(
            f"{config.out}: {config.batch_size} brains at once need more memory than {device} has; "
            "give a smaller batch_size"
        ) from None
    except BrokenProcessPool:
        raise InputError(
            f"{config.out}: a writing process died, for want of memory perhaps; "
            "give fewer writers, and the same command goes on"
        ) from None


@contextmanager
def _disk_errors(out: str) -> Iterator[None]:
    """Tell of a disk that is full, or gone, while `out` is written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); "
            "mend that, and the same command goes on"
        ) from None
