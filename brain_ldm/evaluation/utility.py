"""Can one learn from synthetic brains? Age networks, whatever taught them, tested on real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.evaluation.config import EvaluateConfig
from brain_ldm.evaluation.faithfulness import agreement
from brain_ldm.evaluation.inputs import GENERATOR
from brain_ldm.evaluation.instruments import identity
from brain_ldm.evaluation.measure import Bench, Measured
from brain_ldm.evaluation.store import stored
from brain_ldm.models import BrainAge, open_model


def check_age_networks(folders: Sequence[str], real: Cohort, split: str) -> None:
    """Refuse age networks that cannot be tested on the real cohort.

    Raises:
        InputError: one is missing, or works on another grid, or there are no ages.
    """
    for folder in folders:
        model = open_model(folder, BrainAge)
        if not model.grid.same_as(real.grid):
            raise InputError(
                f"{folder}: works on {model.grid}, but {real.root} has {real.grid}; "
                "give age networks of its grid"
            )
    if folders and real.rows(split)["age"].isna().all():
        raise InputError(
            f"{real.root}/participants.tsv: no {split} row has an age to test age_networks on"
        )


def utility(config: EvaluateConfig, bench: Bench, real: Measured) -> list[dict[str, Any]]:
    """Test each age network of `config` on the real rows whose age is known.

    Returns:
        For each: folder, sha256, how many real and synthetic brains taught it, `source` (real,
        synthetic, both, or not recorded), `trained_on` as its folder records it, n, the mean
        absolute error in years with its 95 % bootstrap interval over brains, r and slope.
    """
    found = []
    for folder in config.age_networks:
        model = open_model(folder, BrainAge).to(bench.instruments.device)
        of_real, synthetic = teachers(model)
        known = {"real": of_real, "synthetic": synthetic}
        kinds = [kind for kind, rows in known.items() if rows]
        source = "both" if len(kinds) == 2 else kinds[0] if kinds else "not recorded"
        predicted = _predicted(model, bench, real)
        age = real.table["age"].to_numpy(float)
        error = np.abs(predicted - age)[np.isfinite(age)]
        draws = np.random.default_rng(config.seed).integers(
            0, len(error), (config.bootstrap, len(error))
        )
        low, high = np.percentile(error[draws].mean(axis=1), [2.5, 97.5])
        result = agreement(age, predicted, config.bootstrap, config.seed)
        found.append(
            {
                "folder": folder,
                "sha256": model.hash,
                "source": source,
                "real_rows": of_real,
                "synthetic_rows": synthetic,
                "trained_on": model.config.trained_on,
                "n": len(error),
                "mae": float(error.mean()),
                "mae_low": float(low),
                "mae_high": float(high),
                "r": result.r,
                "slope": result.slope,
            }
        )
    return found


def teachers(model: BrainAge) -> tuple[int, int]:
    """How many real and synthetic brains a network learnt from, as its folder says."""
    taught = model.config.trained_on
    extra = taught.get("extra", {}).values()
    own = taught.get("training_rows", 0) - sum(cohort["rows"] for cohort in extra)
    counts = {True: 0, False: 0}  # by whether `sample` drew them
    for made_by, rows in [
        (taught.get("made_by"), own),
        *((cohort.get("made_by"), cohort["rows"]) for cohort in extra),
    ]:
        counts[made_by == GENERATOR] += rows
    return counts[False], counts[True]


def _predicted(model: BrainAge, bench: Bench, real: Measured) -> np.ndarray:
    """Age in years of each of the real rows, (n,)."""

    @torch.inference_mode()
    def compute(batch: Sequence[str]) -> dict[str, np.ndarray]:
        parts = [model.predict(bench.images(real.cohort, ids)) for ids in bench.batches(batch)]
        return {"age": torch.cat(parts).double().cpu().numpy()}

    key = {"age": identity(model), "cohort": real.cohort.content_hash()}
    ids = real.table["participant_id"].tolist()
    return stored(Path(bench.cache), key, ids, compute, "predicting age")["age"]
