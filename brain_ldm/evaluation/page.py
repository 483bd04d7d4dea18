"""index.html: the numbers of metrics.json in words, beside the figures. Needs no network."""

from pathlib import Path
from typing import Any

import jinja2

from brain_ldm.evaluation.quantities import (
    QUANTITIES,
    bracket,
    distance,
    interval,
    number,
    percent,
    spread,
)
from brain_ldm.evaluation.table import PAPER

HERE = Path(__file__).parent


def page(metrics: dict[str, Any]) -> str:
    """Return index.html for what metrics.json holds; links are relative to its folder."""
    real, synthetic = metrics["real"], metrics["synthetic"]
    realism = {name: cohort["realism"] for name, cohort in synthetic.items()}
    realism["other real brains"] = real["floor"]
    asked = [name for name, cohort in synthetic.items() if cohort["agreement"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html").render(
        m=metrics,
        style=(HERE / "page.css").read_text(),
        quantities=QUANTITIES,
        realism=realism,
        pairs=_pairs({"real": real} | synthetic),
        missing={title: row for title, row in PAPER.items() if title not in metrics["table"]},
        first_asked=asked[0] if asked else None,
        cohorts={"real": real} | synthetic | metrics["sweeps"],
        bracket=bracket,
        distance=distance,
        interval=interval,
        number=number,
        percent=percent,
        spread=spread,
        said=_said,
        own=[name for name, cohort in synthetic.items() if _drawn_by(cohort, metrics)],
        training=lambda facts: _training(facts, metrics),
    )


def _pairs(cohorts: dict[str, dict[str, Any]]) -> str:
    """How many pairs stand behind each cohort's MS-SSIM."""
    counts = {name: cohort["similarity"]["ms_ssim"]["n"] for name, cohort in cohorts.items()}
    if len(set(counts.values())) == 1:
        return f"{counts['real']} of each cohort"
    return ", ".join(f"{n} of {name}" for name, n in counts.items())


def _drawn_by(cohort: dict[str, Any], metrics: dict[str, Any]) -> bool:
    """Whether the cohort says that its images come from the autoencoder judged here."""
    made = (cohort["generated_by"] or [{}])[0].get("AutoencoderHash")
    judged = metrics["models"].get("autoencoder")
    return judged is not None and made == judged["sha256"]


def _training(facts: dict[str, Any], metrics: dict[str, Any]) -> str:
    """What a model's folder says of its training, and what that means for the rows compared."""
    if not facts:
        return "not recorded"
    split = metrics["settings"]["split"]
    if facts.get("cohort_hash") != metrics["real"]["sha256"]:
        meaning = "another cohort than the real one"
    elif split == "train":
        meaning = "these very rows, which flatters its measurements"
    elif split == "val":
        meaning = (
            "the training split of the real cohort, but its best step was chosen on these rows"
        )
    else:
        meaning = f"the training split of the real cohort, so none of its {split} rows"
    return f"{meaning} ({_said(facts)})"


def _said(facts: dict[str, Any]) -> str:
    """Facts in one line, hashes cut short."""
    return ", ".join(
        f"{name}: {value[:12] if isinstance(value, str) and len(value) == 64 else value}"
        for name, value in facts.items()
    )
