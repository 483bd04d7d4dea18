"""`evaluate`: check everything, measure every cohort, write the report."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from brain_ldm.cohorts.cohort import Cohort, people
from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.evaluation import draw
from brain_ldm.evaluation.config import EvaluateConfig
from brain_ldm.evaluation.faithfulness import agreement, chance
from brain_ldm.evaluation.gradient_similarity import WINDOW as GRADIENT_WINDOW
from brain_ldm.evaluation.inputs import (
    Inputs,
    asked_like,
    check,
    check_networks,
    open_inputs,
    swept,
)
from brain_ldm.evaluation.instruments import Instruments, open_instruments
from brain_ldm.evaluation.measure import Bench, Measured
from brain_ldm.evaluation.memorisation import SIGNIFICANCE, audit
from brain_ldm.evaluation.quantities import QUANTITIES, compared
from brain_ldm.evaluation.realism import RANGES, Comparison, Value, compare
from brain_ldm.evaluation.report import check_out, plain, print_summary, publish, write_files
from brain_ldm.evaluation.sex import GridSearchCV, learn_sex, sex_agreement
from brain_ldm.evaluation.similarity import (
    WINDOW,
    WINDOW_SIGMA,
    pair_mean,
    random_pairs,
    scale_weights,
)
from brain_ldm.evaluation.sweeps import leakage, response
from brain_ldm.evaluation.table import comparison
from brain_ldm.evaluation.utility import check_age_networks, utility

BATCHES = {1: 1, 2: 2}  # volumes at once by resolution in mm; 8 of any other
CONTACTS = 4  # closest pairs on the contact sheet
PLANTED = 64  # copies of training brains, to see how many are recognised


def evaluate(config: EvaluateConfig) -> None:
    """Open what `config` names, evaluate it, write the report and print its main figures.

    Raises:
        InputError: something named is missing, damaged, or does not fit the rest.
    """
    first = next(iter(config.synthetic.values()))[0]
    out = Path(config.out or Path("reports") / Path(first).name)
    check_out(out)
    inputs = open_inputs(config)
    check(config, inputs)  # before networks are fetched
    check_age_networks(config.age_networks, inputs.real, config.split)
    metrics = evaluate_cohorts(config, inputs, open_instruments(config), out)
    print_summary(metrics, out)


def evaluate_cohorts(
    config: EvaluateConfig, inputs: Inputs, instruments: Instruments, out: Path
) -> dict[str, Any]:
    """Evaluate opened cohorts with opened networks and write the report into `out`.

    Of `config`, whatever is no folder is used; its folders are recorded. Returns what
    metrics.json holds.

    Raises:
        InputError: the cohorts and networks do not fit together, or a volume cannot be read.
    """
    check(config, inputs)
    check_networks(config, inputs.real, instruments)
    size = config.batch_size or BATCHES.get(round(inputs.real.grid.resolution), 8)
    bench = Bench(instruments, Path(config.cache), size)
    everyone = bench.measure(inputs.real, inputs.real.rows(), "real", True)
    made = {
        name: bench.measure(cohort, cohort.table, name, _decoded_otherwise(cohort, instruments))
        for name, cohort in inputs.synthetic.items()
    }
    swung = {
        name: bench.measure(cohort, cohort.table, name, _decoded_otherwise(cohort, instruments))
        for name, cohort in inputs.sweeps.items()
    }

    split = everyone.table["split"]
    real, train = everyone.rows(split == config.split), everyone.rows(split == "train")
    held_out = everyone.rows(split != "train")
    reference, floor, n = _halves(everyone, made, config)
    planted = bench.copies(inputs.real, train.table.head(PLANTED)) if len(train) else None
    knows_sex = _sex_classifier(train)

    metrics: dict[str, Any] = {
        "schema_version": 2,
        "settings": {name: getattr(config, name) for name in SETTINGS}
        | {"precision": instruments.precision},
        "grid": {
            "shape": list(inputs.real.grid.shape),
            "resolution_mm": inputs.real.grid.resolution,
        },
        "models": {
            name: {
                "folder": getattr(config, name),
                "sha256": model.hash,
                "trained_on": model.config.trained_on,
            }
            for name, model in instruments.named().items()
        },
        "features": _extractor(instruments),
        "real": _identity(inputs.real, len(real)),
        "synthetic": {},
        "sweeps": {},
        "utility": utility(config, bench, real),
    }
    facts = metrics["real"]
    facts["agreement"] = _agreement(real.table, config)
    facts["sex"] = _sex(knows_sex, real, config)
    facts["similarity"] = _similarity(bench, real, config, "real")
    facts["floor"] = _realism(reference, floor, config)
    facts["reconstruction"] = quality = None
    if instruments.autoencoder is not None:
        quality = bench.reconstruction(inputs.real, real.table)
        facts["reconstruction"] = {
            "psnr_db": _mean(quality["psnr"]),
            "ssim": _mean(quality["ssim"]) | {"window": WINDOW},
            "similarity": _similarity(bench, real, config, "reconstructed", reconstructed=True),
        }
    for name, cohort in made.items():
        metrics["synthetic"][name] = _identity(cohort.cohort, len(cohort)) | {
            "title": inputs.titles[name],
            "agreement": _agreement(cohort.table, config, facts["agreement"]),
            "sex": _sex(knows_sex, cohort, config),
            "similarity": _similarity(bench, cohort, config, name),
            "realism": _realism(reference, _some(cohort, n, config.seed), config),
            "audit": _audit(train, held_out, cohort, planted),
        }
    metrics["notes"] = _notes(train, held_out, made)
    metrics["table"] = comparison(metrics["synthetic"], facts)
    for name, cohort in swung.items():
        metrics["sweeps"][name] = _sweep(cohort, everyone, real, config)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        stage = Path(folder)
        (stage / "figures").mkdir()
        _draw(stage, config, bench, metrics, real, train, quality, made, swung)
        tables = [_labelled(real, "real", inputs.real.root.name, quality)]
        tables += [_labelled(cohort, "synthetic", name) for name, cohort in made.items()]
        tables += [_labelled(cohort, "sweep", name) for name, cohort in swung.items()]
        metrics = plain(metrics)
        write_files(stage, metrics, pd.concat(tables, ignore_index=True))
        publish(stage, out)
    return metrics


SETTINGS = (
    *("split", "pairs", "bootstrap", "resamples", "compared", "neighbours", "permutations"),
    "seed",
)


def _decoded_otherwise(cohort: Cohort, instruments: Instruments) -> bool:
    """Whether a cohort's brains come from another decoder than the autoencoder that measures."""
    made_by = (cohort.description.get("GeneratedBy") or [{}])[0]
    model = instruments.autoencoder
    return model is None or made_by.get("AutoencoderHash") != model.hash


def _halves(
    everyone: Measured, made: dict[str, Measured], config: EvaluateConfig
) -> tuple[Measured, Measured, int]:
    """Real brains to compare with, and as many of other people, the floor; how many.

    Distances between cohorts depend on their size, so all are taken of one: that of the smallest
    synthetic cohort that has enough for all of them, or half the real one, and no more than
    `compared`.
    """
    sizes = [len(cohort) for cohort in made.values()]
    enough = [size for size in sizes if size > config.neighbours]
    n = min(config.compared, len(everyone) // 2, *(enough or sizes))
    whose = pd.factorize(people(everyone.table))[0]
    rank = np.random.default_rng(config.seed).permutation(whose.max() + 1)
    order = np.argsort(rank[whose], kind="stable")  # the scans of a person together
    others = order[~np.isin(whose[order], whose[order[:n]])]
    n = min(n, len(others))
    return everyone.rows(order[:n]), everyone.rows(others[:n]), n


def _some(cohort: Measured, n: int, seed: int) -> Measured:
    return cohort.rows(np.random.default_rng(seed).permutation(len(cohort))[:n])


def _notes(train: Measured, held_out: Measured, made: dict[str, Measured]) -> list[str]:
    """What a reader must know of the cohorts before believing the figures."""
    notes = []
    whole = train.cohort.content_hash()
    for name, cohort in made.items():
        taught = (cohort.cohort.description.get("GeneratedBy") or [{}])[0].get("TrainedOn") or {}
        extra = taught.get("extra", {})
        own = taught.get("training_rows")
        own = own and own - sum(other["rows"] for other in extra.values())
        if taught.get("cohort_hash") not in (None, whole):
            notes.append(
                f"the model of {name} learnt from another cohort than {train.cohort.root}: that "
                "nothing of it was copied says nothing of the brains that the model has seen"
            )
        elif own not in (None, len(train)):
            notes.append(
                f"the model of {name} learnt from {own} of the {len(train)} "
                "training brains: the audit counts those that it never saw, too"
            )
        for folder, other in extra.items():
            notes.append(
                f"the model of {name} learnt from {other['rows']} brains of {folder} as well: "
                "copies of those are not looked for"
            )
        asked = len(asked_like(train.table, cohort.table))
        if asked:
            notes.append(
                f"{asked} of {len(cohort)} brains of {name} were asked for with the covariates "
                "of training brains, which they resemble for that alone: the audit's rate of "
                "false alarms does not hold, and FID is flattered"
            )
    for what, cohort in {"the real cohort's other splits": held_out, **made}.items():
        same = int(cohort.table["voxels"].isin(train.table["voxels"]).sum())
        if same:
            notes.append(f"{same} of {len(cohort)} brains of {what} equal training brains exactly")
    return notes


def _identity(cohort: Cohort, n: int) -> dict[str, Any]:
    return {
        "folder": str(cohort.root),
        "n": n,
        "sha256": cohort.content_hash(),
        "generated_by": cohort.description.get("GeneratedBy", []),
    }


def _extractor(instruments: Instruments) -> dict[str, Any] | None:
    extractor = instruments.extractor
    if extractor is None:
        return None
    return {"name": extractor.name, "sha256": extractor.hash, "stand_in": extractor.stand_in}


def _agreement(
    table: pd.DataFrame, config: EvaluateConfig, ceilings: dict[str, dict] | None = None
) -> dict[str, dict]:
    """Requested against measured for each covariate; with `ceilings`, those beside it.

    Empty where no brain was asked for with a covariate that is measured.
    """
    found = {}
    for name, quantity in QUANTITIES.items():
        if f"measured_{name}" not in table:
            continue
        pair = (table[name].to_numpy(float), table[f"measured_{name}"].to_numpy())
        result = agreement(*pair, config.bootstrap, config.seed)
        by_chance = chance(*pair, config.permutations, config.seed)
        found[name] = {
            "unit": quantity.unit,
            **asdict(result),
            "floor": by_chance and asdict(by_chance),
        }
        if ceilings is not None:
            found[name]["ceiling"] = ceilings.get(name)
    return found if any(result["n"] for result in found.values()) else {}


def _sex_classifier(train: Measured) -> GridSearchCV | None:
    if "features" not in train.vectors:
        return None
    return learn_sex(train.vectors["features"], train.table["sex"].to_numpy())


def _sex(
    classifier: GridSearchCV | None, measured: Measured, config: EvaluateConfig
) -> dict[str, Any] | None:
    sex = measured.table["sex"].to_numpy()
    if classifier is None or pd.isna(sex).all():
        return None
    features = measured.vectors["features"]
    return asdict(sex_agreement(classifier, features, sex, config.bootstrap, config.seed))


def _similarity(
    bench: Bench,
    measured: Measured,
    config: EvaluateConfig,
    title: str,
    reconstructed: bool = False,
) -> dict[str, dict[str, Any]]:
    """MS-SSIM and 4-G-R-SSIM over random pairs; the mean's interval is from resampled brains."""
    ids = measured.table["participant_id"].tolist()
    pairs = random_pairs(len(ids), config.pairs, config.seed)
    found = bench.similarity(
        measured.cohort, [(ids[a], ids[b]) for a, b in pairs], title, reconstructed
    )
    shape = measured.cohort.grid.shape
    facts = {
        "ms_ssim": {
            "window": WINDOW,
            "window_sigma": WINDOW_SIGMA,
            "scales": len(scale_weights(shape)),
        },
        "gradient_ssim": {"window": GRADIENT_WINDOW, "scales": 1},
    }
    return {
        name: pair_mean(found.get(name), pairs, len(ids)) | fact for name, fact in facts.items()
    }


def _realism(reference: Measured, other: Measured, config: EvaluateConfig) -> dict[str, Any] | None:
    if "features" not in reference.vectors:
        return None
    if len(other) < len(reference):
        note = Value(note=f"{len(other)} brains, too few: all others are {len(reference)}")
        return asdict(Comparison(len(other), len(reference), *[note] * len(RANGES)))
    features = (reference.vectors["features"], other.vectors["features"])
    return asdict(compare(*features, config.neighbours, config.resamples, config.seed))


def _audit(
    train: Measured,
    held_out: Measured,
    cohort: Measured,
    planted: dict[str, np.ndarray] | None,
) -> dict[str, Any]:
    """By space: embedding, latent, pixels."""
    spaces = [s for s in ("embedding", "latent", "pixels") if s in train.vectors]
    return {
        space: asdict(
            audit(
                train.vectors[space],
                held_out.vectors[space],
                cohort.vectors[space],
                planted and planted[space],
                people(train.table).to_numpy(),
                # Of all spaces together the chance of a false alarm is to be that of one.
                significance=SIGNIFICANCE / len(spaces),
            )
        )
        for space in spaces
    }


def _sweep(
    cohort: Measured, everyone: Measured, real: Measured, config: EvaluateConfig
) -> dict[str, Any]:
    varied = swept(cohort.cohort)
    found = _identity(cohort.cohort, len(cohort)) | {"covariate": varied}
    known = _known_range(everyone, varied)
    table = _numbered(cohort.table, varied)
    found["training_range"] = None if known is None else list(known)
    found["response"] = None
    if f"measured_{varied}" in table and known is not None:
        found["response"] = asdict(response(table, varied, *known))
    low, high = known or (0.0, 1.0)
    found["leakage"] = {
        name: asdict(value) for name, value in leakage(table, varied, low, high, real.table).items()
    }
    found["agreement"] = _agreement(cohort.table, config).get(varied)
    return found


def _known_range(everyone: Measured, covariate: str) -> tuple[float, float] | None:
    """The range of a covariate among real training rows, or all rows where none train.

    None for a covariate of codes, or without values.
    """
    if covariate not in everyone.table or (
        covariate in COVARIATES and COVARIATES[covariate].levels
    ):
        return None
    train = everyone.table["split"] == "train"
    values = everyone.table[covariate][train if train.any() else ~train].dropna()
    return (float(values.min()), float(values.max())) if len(values) else None


def _numbered(table: pd.DataFrame, covariate: str) -> pd.DataFrame:
    levels = COVARIATES[covariate].levels if covariate in COVARIATES else {}
    return table.assign(**{covariate: table[covariate].map(levels)}) if levels else table


def _mean(values: np.ndarray) -> dict[str, Any]:
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "sd": sd, "n": len(values)}


def _draw(
    stage: Path,
    config: EvaluateConfig,
    bench: Bench,
    metrics: dict[str, Any],
    real: Measured,
    train: Measured,
    quality: dict[str, np.ndarray] | None,
    made: dict[str, Measured],
    swung: dict[str, Measured],
) -> None:
    """Draw all figures into `stage` and put their paths into `metrics`."""

    def reconstruct(volume: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(volume[None, None]).to(bench.instruments.device)
        return bench.instruments.reconstruct(image)[0, 0].cpu().numpy()

    firsts: dict[str, str] = {}  # the first cohort of each title
    for name in made:
        firsts.setdefault(metrics["synthetic"][name]["title"], name)
    shown = {title: made[name] for title, name in firsts.items()}
    draw.overview(stage / "figures/overview.png", real, shown, config.shown)
    features, floor = metrics["features"], metrics["real"]["floor"]
    of = f"FID of {compared(features, floor)} brains" if features else "No features, so no FID"
    draw.comparison(stage / "figures/table.png", metrics["table"], of)
    metrics["figures"] = {"overview": "figures/overview.png", "table": "figures/table.png"}
    metrics["viewers"] = {}
    for title, measured in {"real": real, **shown}.items():
        page = f"figures/viewer_{len(metrics['viewers'])}.html"
        pid = measured.table["participant_id"].iloc[0]
        draw.viewer(stage / page, measured.cohort, pid, f"{title}: {pid}")
        metrics["viewers"][title] = page
    for name, cohort in made.items():
        found = metrics["synthetic"][name]
        found["figures"] = {}
        if found["agreement"]:
            found["figures"] = {
                "montage": f"figures/montage_{name}.png",
                "scatter": f"figures/scatter_{name}.png",
            }
            found["montage_matched"] = draw.montage(
                stage / found["figures"]["montage"],
                real,
                quality,
                reconstruct,
                cohort,
                config.shown,
            )
            draw.scatter(
                stage / found["figures"]["scatter"], cohort.table, real.table, found["agreement"]
            )
        space = next((s for s in found["audit"] if found["audit"][s]["closest"]), None)
        if space is not None:
            found["figures"]["neighbours"] = f"figures/neighbours_{name}.png"
            closest = found["audit"][space]["closest"][:CONTACTS]
            draw.neighbours(stage / found["figures"]["neighbours"], cohort, train, closest)
    for name, cohort in swung.items():
        found = metrics["sweeps"][name]
        found["figure"] = f"figures/sweep_{name}.png"
        known = found["training_range"]
        draw.sweep(
            stage / found["figure"], cohort, real.table, found["covariate"], known and tuple(known)
        )
    if any(network["source"] != "not recorded" for network in metrics["utility"]):
        metrics["figures"]["utility"] = "figures/utility.png"
        draw.utility(stage / "figures/utility.png", metrics["utility"])


def _labelled(
    measured: Measured, role: str, name: str, quality: dict[str, np.ndarray] | None = None
) -> pd.DataFrame:
    table = measured.table.assign(**(quality or {}))
    kept = ["participant_id", *COVARIATES, *(c for c in ("source_id", "seed") if c in table)]
    found = [c for c in table.columns if c.startswith("measured_") or c in ("psnr", "ssim")]
    return table[[*kept, *found]].assign(role=role, cohort=name)
