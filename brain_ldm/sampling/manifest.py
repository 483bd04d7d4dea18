"""manifest.tsv: what every image of a synthetic cohort was asked to be, and its sha256.

A brain counts as drawn if the row of its file says how long the file is, and it is. Rows are kept
by the cohort's writer, each after its file has its name, and come into the manifest at the end.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from brain_ldm.cohorts.files import brief, write_text
from brain_ldm.cohorts.writer import IMAGE, CohortWriter
from brain_ldm.errors import InputError

MANIFEST = "manifest.tsv"
FIXED = ("participant_id", "seed", "model_sha256", "file", "bytes", "sha256")


def read_manifest(root: Path) -> pd.DataFrame:
    """The manifest of a finished cohort, all of it text; n/a is missing.

    Raises:
        InputError: it is not there, cannot be read, or lacks a column.
    """
    path = root / MANIFEST
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a"], keep_default_na=False)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; is {root} a cohort that sample finished?"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable table ({brief(error)})") from None
    lacking = [name for name in FIXED if name not in table]
    if lacking:
        raise InputError(f"{path}: column {lacking[0]} is missing")
    return table


def kept(writer: CohortWriter, participants: Sequence[str]) -> set[str]:
    """Those of `participants` whose image is there, and as long as its row says."""
    images = {pid: row[IMAGE] for pid, row in writer.done(participants).items()}
    if writer.finished:
        listed = read_manifest(writer.root).drop_duplicates("participant_id")
        listed = listed[listed["participant_id"].isin(participants)].set_index("participant_id")
        images = listed[["file", "bytes"]].to_dict("index") | images
    return {pid for pid, image in images.items() if _there(writer.root, image)}


def _there(root: Path, image: dict) -> bool:
    try:
        return (root / image["file"]).stat().st_size == int(image["bytes"])
    except (OSError, TypeError, ValueError):
        return False


def write_manifest(
    writer: CohortWriter, participants: Sequence[str], covariates: Sequence[str], model_hash: str
) -> None:
    """Write the manifest from the writer's rows and, where it has none, from the one there is.

    Args:
        writer: of a cohort whose brains are all drawn.
        participants: the cohort's, in the order of the rows.
        covariates: columns that were asked for.
        model_hash: sha256 of the weights.
    """
    columns = ["participant_id", "seed", *covariates, *FIXED[2:]]
    rows = [
        {**row, **row[IMAGE], "model_sha256": model_hash}
        for row in writer.done(participants).values()
    ]
    # As text already, so that a number reads alike whether its row is new or was there.
    text = _text(pd.DataFrame(rows, columns=columns))
    table = pd.read_csv(io.StringIO(text), sep="\t", dtype=str, keep_default_na=False)
    if (writer.root / MANIFEST).exists():
        table = pd.concat([table, read_manifest(writer.root)])
    table = table.drop_duplicates("participant_id").set_index("participant_id")
    write_text(writer.root / MANIFEST, _text(table.reindex(participants).reset_index()[columns]))


def _text(table: pd.DataFrame) -> str:
    return table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n")
