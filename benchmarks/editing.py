"""What running DDIM backwards gives back, and what `sample from=COHORT` keeps of a brain.

Test brains that neither model saw: how well noise that was found by inversion gives each of them
back, beside the autoencoder's own reconstruction; then each made older, its predicted age, and
which of all brains the changed one is closest to. Needs `make demo` and
`train experiment=embedding_demo`; takes minutes for every 16 brains.
Run: .venv/bin/python benchmarks/editing.py
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from brain_ldm.cohorts.cohort import Cohort, open_cohort
from brain_ldm.diffusion.config import DDIMConfig, Grid
from brain_ldm.evaluation.similarity import psnr
from brain_ldm.models import BrainAge, Diffusion, Embedding, open_model
from brain_ldm.progress import track

BATCH = 16


@torch.inference_mode()
def main() -> None:
    """Print PSNR by grid, then what became of brains that were made older."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", default="cohorts/phantom")
    parser.add_argument("--model", default="models/ldm_demo")
    parser.add_argument("--brain-age", default="models/brain_age_demo")
    parser.add_argument("--embedding", default="models/embedding_demo")
    parser.add_argument("--brains", type=int, default=64)
    parser.add_argument("--years", type=float, default=10.0)
    args = parser.parse_args()
    for folder in (args.cohort, args.model, args.brain_age, args.embedding):
        if not Path(folder).is_dir():
            print(f"{folder} is not there: make demo, then train experiment=embedding_demo")
            return

    model = open_model(args.model, Diffusion)
    predict = open_model(args.brain_age, BrainAge).predict
    embed = open_model(args.embedding, Embedding).embed
    cohort = open_cohort(args.cohort)
    table = cohort.table[cohort.table["split"] == "test"].head(args.brains).reset_index(drop=True)
    print(f"{len(table)} test brains of {args.cohort}; DDIM with 50 steps; mean (sd) over brains")

    found: dict[str, list[Tensor]] = {}
    for images, rows in track(list(batches(cohort, table)), "running backwards"):
        latents, _ = model.autoencoder.encode(images)
        reconstruction = model.decode(latents)
        keep(found, "autoencoder", psnr(reconstruction, images))
        own = torch.from_numpy(model.encoder.encode(rows))
        for grid in Grid:
            sampler = DDIMConfig(steps=50, grid=grid)
            noise = model.invert(latents, own, sampler)
            again = model.decode(model.sample(own, noise, sampler))
            keep(found, f"inverted on {grid.value}", psnr(again, images))
        sampler = DDIMConfig(steps=50, grid=Grid.trailing)
        kept = model.edit(latents, own, own, sampler)
        keep(found, "changed by nothing", psnr(model.decode(kept), images))
        older = rows.assign(age=rows["age"] + args.years)
        wanted = torch.from_numpy(model.encoder.encode(older))
        aged = model.decode(model.edit(latents, own, wanted, sampler))
        keep(found, "years", (predict(aged) - predict(reconstruction)).double())
        keep(found, "before", embed(reconstruction))
        keep(found, "after", embed(aged))

    values = {name: torch.cat(parts) for name, parts in found.items()}
    years, before, after = (values.pop(name).numpy() for name in ("years", "before", "after"))
    for name, value in values.items():
        print(f"{name}: {value.mean():.2f} ({value.std():.2f}) dB PSNR")
    itself = np.sum((after @ before.T).argmax(1) == np.arange(len(after)))
    print(
        f"asked to be {args.years:g} years older: predicted {years.mean():+.1f} "
        f"({years.std():.1f}) years, older in {np.sum(years > 0)} of {len(years)}; closest of all "
        f"to itself, by the embedding, in {itself} of {len(after)}"
    )


def batches(cohort: Cohort, table: pd.DataFrame) -> Iterator[tuple[Tensor, pd.DataFrame]]:
    """Images (B, 1, X, Y, Z) and the rows that they belong to."""
    for start in range(0, len(table), BATCH):
        rows = table.iloc[start : start + BATCH].reset_index(drop=True)
        images = np.stack([cohort.read(participant) for participant in rows["participant_id"]])
        yield torch.from_numpy(images[:, None]), rows


def keep(found: dict[str, list[Tensor]], name: str, values: Tensor) -> None:
    """Put what a batch gave beside what others gave."""
    found.setdefault(name, []).append(values)


if __name__ == "__main__":
    main()
