"""`evaluate`: check everything, measure every cohort, write the report."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from brain_ldm.cohorts.cohort import SPLITS, Cohort, open_cohort
from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.errors import InputError
from brain_ldm.evaluation import figures
from brain_ldm.evaluation.config import EvaluateConfig
from brain_ldm.evaluation.faithfulness import agreement, chance
from brain_ldm.evaluation.measure import Instruments, measure, pair_similarity, reconstruct
from brain_ldm.evaluation.quantities import QUANTITIES, Quantity
from brain_ldm.evaluation.report import check_out, print_summary, publish, write_files
from brain_ldm.evaluation.similarity import WINDOW, WINDOW_SIGMA, random_pairs, scale_weights
from brain_ldm.models import Autoencoder, BrainAge, Segmenter, open_model

# Brains in the strip of a sweep: as many as fit a page side by side.
STRIP = 7


def evaluate(config: EvaluateConfig) -> None:
    """Open what `config` names, evaluate it, write the report and print its main figures.

    Raises:
        InputError: something named is missing, damaged, or does not fit the rest.
    """
    out = Path(config.out or Path("reports") / Path(config.synthetic[0]).name)
    check_out(out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    instruments = Instruments(
        open_model(config.segmenter, Segmenter).to(device),
        open_model(config.brain_age, BrainAge).to(device),
        open_model(config.autoencoder, Autoencoder).to(device),
        device,
    )
    metrics = evaluate_cohorts(
        config,
        open_cohort(config.real),
        {name: open_cohort(folder) for name, folder in _named(config.synthetic).items()},
        {name: open_cohort(folder) for name, folder in _named(config.sweeps).items()},
        instruments,
        out,
    )
    print_summary(metrics, out)


def evaluate_cohorts(
    config: EvaluateConfig,
    real: Cohort,
    synthetic: dict[str, Cohort],
    sweeps: dict[str, Cohort],
    instruments: Instruments,
    out: Path,
) -> dict[str, Any]:
    """Evaluate opened cohorts with opened networks and write the report into `out`.

    synthetic, sweeps: cohorts by the names that the report calls them. Of `config`, whatever is
    no folder is used; its folders are recorded. Returns what metrics.json holds.

    Raises:
        InputError: the cohorts and networks do not fit together, or a volume cannot be read.
    """
    _check(config, real, synthetic, sweeps, instruments)
    rows = real.rows(config.split)
    size = config.batch_size
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        stage = Path(folder)
        (stage / "figures").mkdir()
        again = np.memmap(
            stage / "reconstructions", np.float16, "w+", shape=(len(rows), *real.grid.shape)
        )
        true = measure(real, rows, instruments, size, "real")
        true = true.join(reconstruct(real, rows, instruments, size, again))
        tables = [_labelled(true, "real", real.root.name)]
        ceilings = _compare(true, config)
        metrics = {
            "schema_version": 1,
            "settings": {
                name: getattr(config, name)
                for name in ("split", "pairs", "bootstrap", "permutations", "seed")
            },
            "grid": {"shape": list(real.grid.shape), "resolution_mm": real.grid.resolution},
            "models": {
                name: {
                    "folder": getattr(config, name),
                    "sha256": model.hash,
                    "trained_on": model.config.trained_on,
                }
                for name, model in instruments.named().items()
            },
            "real": _identity(real, len(true))
            | {
                "agreement": ceilings,
                "reconstruction": {
                    "psnr_db": _mean(true["psnr"].to_numpy()),
                    "ssim": _mean(true["ssim"].to_numpy()) | {"window": WINDOW},
                },
                "ms_ssim": _diversity(real, rows, config, instruments, "real"),
                "ms_ssim_reconstructed": _diversity(
                    real, rows, config, instruments, "reconstructed", again
                ),
            },
            "synthetic": {},
            "sweeps": {},
        }
        for name, cohort in synthetic.items():
            table = measure(cohort, cohort.table, instruments, size, name)
            tables.append(_labelled(table, "synthetic", name))
            found = _compare(table, config, ceilings)
            metrics["synthetic"][name] = _identity(cohort, len(table)) | {
                "agreement": found,
                "ms_ssim": _diversity(cohort, table, config, instruments, name),
                "montage": f"figures/montage_{name}.png",
                "scatter": f"figures/scatter_{name}.png",
            }
            metrics["synthetic"][name]["montage_matched"] = _montage(
                stage / f"figures/montage_{name}.png", config, real, true, again, cohort, table
            )
            _scatter(stage / f"figures/scatter_{name}.png", table, true, found)
        for name, cohort in sweeps.items():
            table = measure(cohort, cohort.table, instruments, size, name)
            tables.append(_labelled(table, "sweep", name))
            varied = _swept(cohort)
            metrics["sweeps"][name] = _identity(cohort, len(table)) | {
                "covariate": varied,
                "agreement": _compare(table, config, ceilings).get(varied),
                "figure": f"figures/sweep_{name}.png",
            }
            _sweep(stage / f"figures/sweep_{name}.png", cohort, table, true, varied)
        del again
        (stage / "reconstructions").unlink()
        write_files(stage, metrics, pd.concat(tables, ignore_index=True))
        publish(stage, out)
    return metrics


def _named(folders: list[str]) -> dict[str, str]:
    """Name each folder after its last part, or its last two where that tells them not apart."""
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(f for f, p in zip(folders, paths, strict=True) if paths.count(p) > 1)
        raise InputError(f"{twice}: this cohort is given twice")
    last = [path.name for path in paths]
    names = [
        path.name if last.count(path.name) == 1 else f"{path.parent.name}-{path.name}"
        for path in paths
    ]
    if len(set(names)) < len(names):
        raise InputError(f"cohorts named alike: {', '.join(folders)}; rename one of the folders")
    return dict(zip(names, folders, strict=True))


def _check(
    config: EvaluateConfig,
    real: Cohort,
    synthetic: dict[str, Cohort],
    sweeps: dict[str, Cohort],
    instruments: Instruments,
) -> None:
    for key in ("pairs", "bootstrap", "permutations", "shown", "batch_size"):
        if getattr(config, key) < 1:
            raise InputError(f"{key} is {getattr(config, key)}; give at least 1")
    if config.split not in SPLITS:
        raise InputError(f"split is {config.split!r}; give {', '.join(SPLITS)}")
    if real.rows(config.split).empty:
        raise InputError(f"{real.root}/participants.tsv: no row has split {config.split}")
    scale_weights(real.grid.shape)
    for name, model in instruments.named().items():
        if not model.grid.same_as(real.grid):
            raise InputError(
                f"{real.root}: {real.grid}, but {name} ({getattr(config, name)}) works on "
                f"{model.grid}; give a cohort and models of one grid"
            )
    for cohort in (*synthetic.values(), *sweeps.values()):
        if not cohort.grid.same_as(real.grid):
            raise InputError(
                f"{cohort.root}: {cohort.grid}, but the real cohort {real.root} has {real.grid}; "
                "give cohorts of one grid"
            )
    for cohort in synthetic.values():
        if _swept(cohort):
            raise InputError(f"{cohort.root}: a sweep of {_swept(cohort)}; give it as sweeps=[…]")
    for cohort in sweeps.values():
        varied = _swept(cohort)
        if varied is None:
            raise InputError(f"{cohort.root}: not a sweep; give it as synthetic=…")
        if varied not in cohort.table.columns or cohort.table[varied].isna().any():
            raise InputError(f"{cohort.root}/participants.tsv: a sweep needs {varied} in every row")


def _swept(cohort: Cohort) -> str | None:
    """The covariate that a sweep varies; None for a cohort that is no sweep."""
    return (cohort.description.get("GeneratedBy") or [{}])[0].get("Sweep")


def _identity(cohort: Cohort, n: int) -> dict[str, Any]:
    return {
        "folder": str(cohort.root),
        "n": n,
        "sha256": cohort.content_hash(),
        "generated_by": cohort.description.get("GeneratedBy", []),
    }


def _compare(
    table: pd.DataFrame, config: EvaluateConfig, ceilings: dict[str, dict] | None = None
) -> dict[str, dict]:
    """Requested against measured for each covariate; with `ceilings`, those beside it."""
    found = {}
    for name, quantity in QUANTITIES.items():
        pair = (table[name].to_numpy(float), table[f"measured_{name}"].to_numpy())
        result = agreement(*pair, config.bootstrap, config.seed)
        by_chance = chance(*pair, config.permutations, config.seed)
        found[name] = {
            "unit": quantity.unit,
            **asdict(result),
            "floor": by_chance and asdict(by_chance),
        }
        if ceilings is not None:
            found[name]["ceiling"] = ceilings[name]
    return found


def _mean(values: np.ndarray) -> dict[str, Any]:
    if not len(values):
        return {"mean": None, "sd": None, "n": 0}
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "sd": sd, "n": len(values)}


def _diversity(
    cohort: Cohort,
    rows: pd.DataFrame,
    config: EvaluateConfig,
    instruments: Instruments,
    title: str,
    volumes: np.ndarray | None = None,
) -> dict[str, Any]:
    """MS-SSIM over random pairs of `rows`, read from `volumes` (n, X, Y, Z) or from the cohort."""
    participants = rows["participant_id"].tolist()

    def read(row: int) -> np.ndarray:
        return cohort.read(participants[row]) if volumes is None else volumes[row]

    pairs = random_pairs(len(rows), config.pairs, config.seed)
    values = pair_similarity(read, pairs, instruments.device, config.batch_size, title)
    return _mean(values) | {
        "window": WINDOW,
        "window_sigma": WINDOW_SIGMA,
        "scales": len(scale_weights(cohort.grid.shape)),
    }


def _labelled(table: pd.DataFrame, role: str, name: str) -> pd.DataFrame:
    kept = ["participant_id", *COVARIATES, *(c for c in ("source_id", "seed") if c in table)]
    measured = [c for c in table.columns if c.startswith("measured_") or c in ("psnr", "ssim")]
    return table[[*kept, *measured]].assign(role=role, cohort=name)


def _pairs_to_show(
    real: pd.DataFrame, synthetic: pd.DataFrame, count: int
) -> tuple[list[tuple[int, int]], bool]:
    """Row numbers (real, synthetic) for the montage, spread over age; whether they match.

    They match where the synthetic brains were asked for with a real participant's covariates
    (column source_id); otherwise the n-th real brain stands above the n-th synthetic one.
    """
    pairs = []
    if "source_id" in synthetic:
        by_source = {source: row for row, source in reversed(list(enumerate(synthetic.source_id)))}
        pairs = [(r, by_source[p]) for r, p in enumerate(real.participant_id) if p in by_source]
    matched = bool(pairs)
    if not matched:
        pairs = [(row, row) for row in range(min(len(real), len(synthetic)))]
    pairs.sort(key=lambda pair: (np.nan_to_num(real.age[pair[0]], nan=np.inf), pair[0]))
    chosen = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    return [pairs[i] for i in chosen], matched


def _montage(
    path: Path,
    config: EvaluateConfig,
    real: Cohort,
    true: pd.DataFrame,
    again: np.ndarray,
    cohort: Cohort,
    table: pd.DataFrame,
) -> bool:
    pairs, matched = _pairs_to_show(true, table, config.shown)
    rows: dict[str, list[figures.Brain]] = {"Real": [], "Reconstructed": [], "Synthetic": []}
    for r, s in pairs:
        person, made = true.loc[r], table.loc[s]
        rows["Real"].append(
            figures.Brain(real.read(person.participant_id), _caption(person, "true"))
        )
        rows["Reconstructed"].append(
            figures.Brain(
                np.asarray(again[r], np.float32),
                (f"PSNR {person.psnr:.1f} dB", f"SSIM {person.ssim:.3f}"),
            )
        )
        rows["Synthetic"].append(
            figures.Brain(cohort.read(made.participant_id), _caption(made, "asked"))
        )
    figures.montage(path, real.grid, rows)
    return matched


def _caption(row: pd.Series, word: str) -> tuple[str, ...]:
    age = "age n/a" if pd.isna(row.age) else f"{row.age:.0f} years"
    sex = "" if pd.isna(row.sex) else f", {row.sex}"
    ventricles = QUANTITIES["ventricular_volume"]
    return (
        f"{age}{sex}",
        "ventricles",
        f"{word} {ventricles.text(row.ventricular_volume)}",
        f"measured {ventricles.text(row.measured_ventricular_volume)}",
    )


def _scatter(path: Path, table: pd.DataFrame, true: pd.DataFrame, found: dict[str, dict]) -> None:
    def points(rows: pd.DataFrame, name: str, quantity: Quantity) -> tuple[np.ndarray, np.ndarray]:
        return (
            quantity.shown(rows[name].to_numpy(float)),
            quantity.shown(rows[f"measured_{name}"].to_numpy()),
        )

    figures.scatter(
        path,
        [
            figures.Points(
                quantity.title,
                quantity.display,
                points(table, name, quantity),
                points(true, name, quantity),
                quantity.note(found[name]),
                quantity.note(found[name]["ceiling"]),
            )
            for name, quantity in QUANTITIES.items()
        ],
    )


def _sweep(
    path: Path, cohort: Cohort, table: pd.DataFrame, true: pd.DataFrame, varied: str
) -> None:
    levels = COVARIATES[varied].levels if varied in COVARIATES else {}
    quantity = QUANTITIES.get(varied, Quantity(varied, "", "", 1.0, 2))
    values = table[varied].map(levels) if levels else quantity.shown(table[varied])
    table = table.assign(value=values.astype(float)).sort_values("value", kind="stable")
    seeds = [part for _, part in table.groupby("seed", sort=False)] if "seed" in table else [table]
    first = seeds[0]
    strip = first.iloc[np.linspace(0, len(first) - 1, min(STRIP, len(first))).round().astype(int)]
    brains = []
    for _, row in strip.iterrows():
        asked = row[varied] if levels else quantity.text(row[varied])
        lines = [f"asked {asked}"]
        if varied in QUANTITIES:
            lines.append(f"measured {quantity.text(row[f'measured_{varied}'])}")
        brains.append(figures.Brain(cohort.read(row.participant_id), tuple(lines)))

    def line(name: str, other: Quantity) -> figures.Line:
        requested = other.shown(first[name].to_numpy(float))
        asked = "not requested" if np.isnan(requested).all() else "kept fixed"
        return figures.Line(
            f"{other.title}: {'varied' if name == varied else asked}",
            f"{quantity.title.lower()} requested"
            + (f" ({quantity.display})" * bool(quantity.display)),
            f"{other.title.lower()} ({other.display})",
            [
                (part.value.to_numpy(), other.shown(part[f"measured_{name}"].to_numpy()))
                for part in seeds
            ],
            (first.value.to_numpy(), requested),
            tuple(other.shown(np.percentile(true[f"measured_{name}"], [0, 100]))),
            {code: level for level, code in levels.items()} or None,
        )

    order = sorted(QUANTITIES, key=lambda name: name != varied)
    figures.sweep(path, cohort.grid, brains, [line(name, QUANTITIES[name]) for name in order])
