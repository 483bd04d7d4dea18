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
from brain_ldm.evaluation.quantities import QUANTITIES, bracket, compared, distance, number, spread
from brain_ldm.evaluation.table import MEASURES

# In the order in which they are published: the page last, since it refers to all others.
FILES = ("measurements.tsv", "metrics.json", "index.html")
FIGURES = "figures"


def check_out(out: Path) -> None:
    """Refuse a folder that holds something else than an earlier report.

    Raises:
        InputError: `out` is a file, or a folder with files and without a report's.
    """
    if out.is_dir():
        mine = all((out / name).is_file() for name in ("metrics.json", "measurements.tsv"))
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
    """Print the table, what was requested against what was measured, and where the report lies."""
    console = Console()
    features, floor = metrics["features"], metrics["real"]["floor"]
    columns = ["", "FID", "MS-SSIM", "4-G-R-SSIM"]
    table = _table("The table", columns)
    for title, row in metrics["table"].items():
        cells = [[row[name][part] for part in ("mean", "low", "high")] for name in MEASURES]
        table.add_row(title, distance(*cells[0]), *(bracket(*cell) for cell in cells[1:]))
    console.print(table)
    if features is not None:
        console.print(
            f"FID: {compared(features, floor)} brains",
            highlight=False,
        )
    for name, cohort in metrics["synthetic"].items():
        if not cohort["agreement"]:
            continue
        columns = ["", "r", "95 %", "MAE", "slope", "n", "ceiling r", "chance r"]
        table = _table(f"{name}: requested against measured", columns)
        for covariate, found in cohort["agreement"].items():
            quantity = QUANTITIES[covariate]
            table.add_row(
                quantity.title,
                number(found["r"]),
                f"{number(found['r_low'])}..{number(found['r_high'])}",
                quantity.text(found["mae"]),
                number(found["slope"], 2),
                str(found["n"]),
                number(found["ceiling"] and found["ceiling"]["r"]),
                number(found["floor"] and found["floor"]["mean_abs_r"], 2),
            )
        console.print(table)
    for name, cohort in metrics["synthetic"].items():
        for space, found in cohort["audit"].items():
            console.print(f"{name}, {space}: {found['verdict'] or found['note']}", highlight=False)
    again = metrics["real"].get("reconstruction")
    if again is not None:
        psnr, ssim = again["psnr_db"], again["ssim"]
        console.print(
            f"Autoencoder: PSNR {spread(psnr, 1)} dB, SSIM {spread(ssim)} (n {psnr['n']})",
            highlight=False,
        )
    for note in metrics["notes"]:
        console.print(f"Note: {note}", highlight=False)
    console.print(f"Report: {out / 'index.html'}", highlight=False, soft_wrap=True)


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)
    table.title_justify = "left"
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def plain(value: Any) -> Any:
    """Data as JSON holds it; numbers that it has no word for (an infinite PSNR) become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
