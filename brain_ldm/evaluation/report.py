"""The report's files: metrics.json, measurements.tsv, index.html, and the summary in the terminal.

docs/metrics.md describes metrics.json key by key.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from brain_ldm.errors import InputError
from brain_ldm.evaluation.page import page
from brain_ldm.evaluation.quantities import QUANTITIES, number, spread

# In the order in which they are published: the page last, since it refers to all others.
FILES = ("measurements.tsv", "metrics.json", "index.html")
FIGURES = "figures"


def check_out(out: Path) -> None:
    """Refuse a folder that holds something else than an earlier report.

    Raises:
        InputError: `out` is a file, or a folder with files and without a report's.
    """
    if out.is_dir():
        mine = any((out / name).exists() for name in (*FILES, FIGURES))
        if mine or not any(out.iterdir()):
            return
    elif not out.exists():
        return
    raise InputError(f"{out}: holds something else than a report; choose another out")


def write_files(folder: Path, metrics: dict[str, Any], measurements: pd.DataFrame) -> None:
    """Write metrics.json, measurements.tsv and index.html beside the figures in `folder`.

    measurements: a row a brain, with columns role, cohort and participant_id and whatever was
    requested and measured.
    """
    metrics = _plain(metrics)
    first = ["role", "cohort", "participant_id"]
    table = measurements[[*first, *measurements.columns.difference(first, sort=False)]]
    table.to_csv(
        folder / "measurements.tsv", sep="\t", index=False, na_rep="n/a", float_format="%.7g"
    )
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    (folder / "index.html").write_text(page(metrics), encoding="utf-8")


def publish(stage: Path, out: Path) -> None:
    """Move a finished report from `stage`, on the same disk, to `out`.

    The old page goes first and the new one comes last, so that no page ever stands beside figures
    or numbers of another run.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").unlink(missing_ok=True)
    if (out / FIGURES).exists():
        shutil.rmtree(out / FIGURES)
    (stage / FIGURES).replace(out / FIGURES)
    for name in FILES:
        (stage / name).replace(out / name)


def print_summary(metrics: dict[str, Any], out: Path) -> None:
    """Print the main figures and where the report lies."""
    console = Console()
    for name, cohort in metrics["synthetic"].items():
        table = Table(title=f"{name}: requested against measured", box=SIMPLE_HEAD, padding=0)
        table.title_justify = "left"
        table.add_column("", no_wrap=True)
        for column in ("r", "95 %", "MAE", "slope", "n", "ceiling r", "chance r"):
            table.add_column(column, justify="right", no_wrap=True)
        for covariate, found in cohort["agreement"].items():
            quantity = QUANTITIES[covariate]
            table.add_row(
                quantity.title,
                number(found["r"]),
                f"{number(found['r_low'])}..{number(found['r_high'])}",
                quantity.text(found["mae"]),
                number(found["slope"], 2),
                str(found["n"]),
                number(found["ceiling"]["r"]),
                number(found["floor"] and found["floor"]["mean_abs_r"], 2),
            )
        console.print(table)
    real = metrics["real"]
    psnr, ssim = real["reconstruction"]["psnr_db"], real["reconstruction"]["ssim"]
    console.print(
        f"Autoencoder: PSNR {spread(psnr, 1)} dB, SSIM {spread(ssim)} (n {psnr['n']})",
        highlight=False,
    )
    diversity = {"real": real["ms_ssim"]} | {
        name: cohort["ms_ssim"] for name, cohort in metrics["synthetic"].items()
    }
    console.print(
        "MS-SSIM between brains: "
        + "; ".join(f"{name} {spread(found)}" for name, found in diversity.items()),
        highlight=False,
    )
    console.print(f"Report: {out / 'index.html'}", highlight=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    """Numbers that JSON has no word for (an infinite PSNR) become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
