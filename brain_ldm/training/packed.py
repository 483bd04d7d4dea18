"""Packed arrays: the deterministic part of training's input, computed once and memory-mapped."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.progress import track

KEY = "key.json"


def packed(
    folder: Path,
    key: dict,
    arrays: dict[str, tuple[tuple[int, ...], str]],
    batches: Callable[[], Iterable[dict[str, np.ndarray]]],
) -> dict[str, np.ndarray]:
    """Return memory-mapped arrays from `folder`; fill them first unless they are there already.

    Args:
        folder: where they lie; a folder with another key is replaced.
        key: what the content depends on, as plain data.
        arrays: shape and dtype of each array by name; the first axis counts rows.
        batches: gives the rows in order, as arrays by name.
    """
    key = json.loads(json.dumps({**key, "arrays": arrays}))
    if not _holds(folder, key):
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {
            name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", dtype, shape)
            for name, (shape, dtype) in arrays.items()
        }
        done = 0
        for batch in batches():
            count = len(next(iter(batch.values())))
            for name, rows in batch.items():
                files[name][done : done + count] = rows
            done += count
        for file in files.values():
            file.flush()
        (temporary / KEY).write_text(json.dumps(key))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


def _holds(folder: Path, key: dict) -> bool:
    path = folder / KEY
    return path.is_file() and json.loads(path.read_text()) == key


def packed_images(cohort: Cohort, rows: pd.DataFrame, folder: Path) -> np.ndarray:
    """Return the images of `rows` as float16 (N, X, Y, Z); every volume is checked on the way."""
    ids = list(rows["participant_id"])
    arrays = {"images": ((len(ids), *cohort.grid.shape), "float16")}
    key = {"cohort": cohort.content_hash(), "participants": ids}

    def batches() -> Iterable[dict[str, np.ndarray]]:
        for participant in track(ids, "reading images"):
            yield {"images": cohort.read(participant)[None]}

    return packed(folder, key, arrays, batches)["images"]
