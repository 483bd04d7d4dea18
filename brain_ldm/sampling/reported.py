"""What an evaluation's report says of one cohort, for the cohort's data card."""

from pathlib import Path
from typing import Any

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.cohorts.files import read_json
from brain_ldm.errors import InputError

REALISM = {"fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall",
           "density": "density", "coverage": "coverage"}  # fmt: skip
SIMILARITY = {"ms_ssim": "MS-SSIM of pairs", "gradient_ssim": "4-G-R-SSIM of pairs"}


def read_report(report: Path) -> dict[str, Any]:
    """The metrics.json of a report.

    Raises:
        InputError: there is none.
    """
    if not (report / "metrics.json").is_file():
        raise InputError(f"report={report}: no metrics.json there; give the folder of a report")
    return read_json(report / "metrics.json")


def reported(metrics: dict[str, Any], root: Path) -> dict[str, Any] | None:
    """What a report says of the cohort in `root`, as rows for a reader; None: nothing.

    Returns:
        `brains`, how many were evaluated; `measures`, each a `measure` with `value`, `low` and
        `high` (95 %) and the `reference` of real brains, null where there is none; `distances`,
        whose features FID and its like are of and of how many brains, null without features; and
        `copies`, the verdict on copied training brains by space.

    Raises:
        InputError: it is about the cohort as it was before its table or an image changed.
    """
    made_by = read_json(root / "dataset_description.json")["GeneratedBy"]
    judged = [*metrics["synthetic"].values(), *metrics["sweeps"].values()]
    found = next((entry for entry in judged if entry["generated_by"] == made_by), None)
    if found is None:
        return None
    if found["sha256"] != open_cohort(root).content_hash():
        raise InputError(f"{root}: has changed since that report; evaluate it again")
    real, agreements = metrics["real"], found["agreement"] or {}
    if "covariate" in found and agreements:
        agreements = {found["covariate"]: agreements}  # a sweep has that of its covariate alone
    measures = []
    for covariate, agreement in agreements.items():
        ceiling = agreement.get("ceiling") or {}
        r = [agreement[key] for key in ("r", "r_low", "r_high")]
        mae = [agreement["mae"], None, None]
        unit = agreement["unit"]
        measures += [
            _measure(f"{covariate}: r, requested and measured", *r, ceiling.get("r")),
            _measure(f"{covariate}: mean absolute error, {unit}", *mae, ceiling.get("mae")),
        ]
    for names, key, reference in (
        (REALISM, "realism", "floor"),
        (SIMILARITY, "similarity", "similarity"),
    ):
        for name, title in names.items():
            if found.get(key):
                there = (real.get(reference) or {}).get(name) or {}
                interval = [found[key][name][k] for k in ("value", "low", "high")]
                measures.append(_measure(title, *interval, there.get("value")))
    audit = found.get("audit") or {}
    copies = {space: judged["verdict"] or judged["note"] for space, judged in audit.items()}
    return {
        "brains": found["n"],
        "measures": measures,
        "distances": _compared(metrics["features"], found.get("realism")),
        "copies": copies,
    }


def _compared(
    features: dict[str, Any] | None, realism: dict[str, Any] | None
) -> dict[str, Any] | None:
    if not features or not realism:
        return None
    return features | {"n": realism["n"], "n_real": realism["n_real"]}


def _measure(
    name: str,
    value: float | None,
    low: float | None,
    high: float | None,
    reference: float | None,
) -> dict[str, Any]:
    return {"measure": name, "value": value, "low": low, "high": high, "reference": reference}
