"""How often the audit of `evaluate` calls brains copies: real ones, which are none, and copies.

In every trial some unseen real brains are held out, and others, or copies of training brains among
them, are put in the place of synthetic ones; the training brains stay. Trials share brains, so they
are not independent. Needs `make demo` and `train experiment=embedding_demo`. Run:
.venv/bin/python benchmarks/audit.py
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from brain_ldm.cohorts.cohort import Cohort, open_cohort
from brain_ldm.evaluation.config import EvaluateConfig
from brain_ldm.evaluation.instruments import Instruments
from brain_ldm.evaluation.measure import Bench
from brain_ldm.evaluation.memorisation import SIGNIFICANCE, audit
from brain_ldm.models import Autoencoder, Embedding, open_model

HELD_OUT, SYNTHETIC = 126, 92  # as in the demo
NOISE = 0.05  # standard deviation, of intensities in 0..1


def main() -> None:
    """Print for each case and space how many of the trials end in the verdict of copying."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", default="cohorts/phantom")
    parser.add_argument("--unseen", default="cohorts/phantom_measure")
    parser.add_argument("--embedding", default="models/embedding_demo")
    parser.add_argument("--autoencoder", default="models/ae_demo")
    parser.add_argument("--trials", type=int, default=200)
    args = parser.parse_args()
    for folder in (args.real, args.unseen, args.embedding, args.autoencoder):
        if not Path(folder).is_dir():
            print(f"{folder} is not there: make demo, then train experiment=embedding_demo")
            return

    instruments = Instruments(
        autoencoder=open_model(args.autoencoder, Autoencoder),
        embedding=open_model(args.embedding, Embedding),
    )
    bench = Bench(instruments, Path(EvaluateConfig.cache), 16)
    real, unseen = open_cohort(args.real), open_cohort(args.unseen)
    known = bench.measure(real, real.rows(), "real", True)
    others = bench.measure(unseen, unseen.rows(), "unseen", True)
    in_training = (known.table["split"] == "train").to_numpy()
    ids = known.table["participant_id"][in_training].tolist()[:SYNTHETIC]
    # As `evaluate` has it: what no decoder has made is reconstructed first.
    noised = vectors(bench, real, ids, lambda images: images + NOISE * torch.randn_like(images))

    spaces = list(known.vectors)
    brains = {}  # by space: rows of the real cohort, of the unseen one, and copies
    for space in spaces:
        sets = [known.vectors[space], others.vectors[space], noised[space]]
        compacted = compact(np.concatenate(sets))
        brains[space] = np.split(compacted, np.cumsum([len(rows) for rows in sets])[:-1])
    print(
        f"{args.trials} trials: {in_training.sum()} training brains, {HELD_OUT} held out, "
        f"{SYNTHETIC} as synthetic ones; level {SIGNIFICANCE / len(spaces):.3f} a space"
    )
    cases = {"unseen real brains": 0.0}
    for share in (1.0, 0.2, 0.1):
        cases[f"{share:.0%} training brains with noise of {NOISE}"] = share
    for title, share in cases.items():
        alarms = dict.fromkeys([*spaces, "any"], 0)
        for trial in range(args.trials):
            rng = np.random.default_rng(trial)
            any_space = False
            order = rng.permutation((~in_training).sum() + len(others))
            copied = rng.random(SYNTHETIC) < share
            for space in spaces:
                mine, unseen_rows, noised_rows = brains[space]
                pool = np.concatenate([mine[~in_training], unseen_rows])
                held_out = pool[order[:HELD_OUT]]
                synthetic = pool[order[HELD_OUT : HELD_OUT + SYNTHETIC]].copy()
                synthetic[copied] = noised_rows[copied]
                found = audit(
                    mine[in_training],
                    held_out,
                    synthetic,
                    measure="cosine",
                    significance=SIGNIFICANCE / len(spaces),
                )
                alarms[space] += bool(found.copies)
                any_space |= bool(found.copies)
            alarms["any"] += any_space
        said = ", ".join(f"{name} {share_of(count, args.trials)}" for name, count in alarms.items())
        print(f"{title}: {said}", flush=True)


def vectors(
    bench: Bench, cohort: Cohort, ids: list[str], change: Callable[[Tensor], Tensor]
) -> dict[str, np.ndarray]:
    """Vectors of changed brains, (n, numbers) each, by space."""
    torch.manual_seed(0)
    parts = []
    for some in bench.batches(ids):
        images = change(bench.images(cohort, some)).clamp(0, 1)
        parts.append(bench.instruments.likeness(images, cohort.grid.resolution, True))
    return {name: torch.cat([p[name] for p in parts]).numpy() for name in parts[0]}


def compact(rows: np.ndarray) -> np.ndarray:
    """Rows of n numbers at most whose cosines are the correlations of rows (n, numbers).

    Brains are compared in every trial; like this it takes less.
    """
    rows = np.asarray(rows, float)
    rows = rows - rows.mean(1, keepdims=True)
    return np.linalg.qr(rows.T, mode="r").T


def share_of(count: int, trials: int) -> str:
    """A share with its 95 % interval."""
    interval = stats.binomtest(count, trials).proportion_ci(0.95, "exact")
    return f"{count / trials:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


if __name__ == "__main__":
    main()
