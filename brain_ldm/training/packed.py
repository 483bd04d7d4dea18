"""Packed arrays: the deterministic part of training's input, computed once and memory-mapped.

A cache is a folder with one .npy file an array, `done.npy` with a flag a row, and `key.json`, which
says what the content depends on. Rows are shared out among the processes of a run, and each flag is
set after its row is written: what was interrupted is completed, and nothing is computed twice.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.progress import track
from brain_ldm.training.config import Storage

KEY, DONE = "key.json", "done.npy"


@dataclass(frozen=True)
class Team:
    """This process among the `size` processes of a run, which wait for each other at `barrier`."""

    rank: int = 0
    size: int = 1
    barrier: Callable[[], object] = lambda: None
    device: torch.device | str = "cpu"


def packed(
    folder: Path,
    key: dict,
    count: int,
    arrays: dict[str, tuple[tuple[int, ...], str]],
    compute: Callable[[Sequence[int]], Iterable[tuple[int, dict[str, np.ndarray]]]],
    team: Team,
) -> dict[str, np.ndarray]:
    """Return memory-mapped arrays from `folder`, (count, ...) each; compute the rows that it lacks.

    Args:
        folder: where they lie. One with another key is made anew, and a line says so.
        key: what the content depends on, as plain data.
        count: rows.
        arrays: shape of a row and dtype of each array by name.
        compute: gives (row, its arrays by name) for the rows asked for.
        team: the processes that share the work.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    key = json.loads(json.dumps({**key, "count": count, "arrays": arrays}))
    try:
        with _locked(folder, team):
            if team.rank == 0:
                _prepare(folder, key, count, arrays)
            team.barrier()
            lacking = np.flatnonzero(np.load(folder / DONE) == 0)
            team.barrier()  # no flag is set before all have seen the same
            mine = np.array_split(lacking, team.size)[team.rank]
            if len(mine):
                _fill(folder, arrays, compute(mine.tolist()))
            team.barrier()
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); give data.cache another folder"
        ) from None
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


@contextmanager
def _locked(folder: Path, team: Team) -> Iterator[None]:
    """Keep other runs out while this one fills the cache; its first process holds the lock."""
    if team.rank:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(
    folder: Path, key: dict, count: int, arrays: dict[str, tuple[tuple[int, ...], str]]
) -> None:
    """Leave in `folder` what holds `key`, whole or in part; begin anew where it does not."""
    shapes = {name: (count, *shape) for name, (shape, _) in arrays.items()}
    if folder.exists():
        differs = _difference(folder, key, shapes)
        if differs is None:
            return
        print(f"{folder}: {differs}; made anew")
        shutil.rmtree(folder)
    folder.mkdir()
    for name, (_, dtype) in arrays.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shapes[name])
    np.save(folder / DONE, np.zeros(count, np.uint8))
    temporary = folder / f".{KEY}.tmp"
    temporary.write_text(json.dumps(key, indent=1))
    temporary.replace(folder / KEY)


def _difference(folder: Path, key: dict, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Say why the content of `folder` is not that of `key`; None where it is."""
    try:
        found = json.loads((folder / KEY).read_text())
        differing = [n for n in key.keys() | found.keys() if key.get(n) != found.get(n)]
        if differing:
            return f"made for another {', '.join(sorted(differing))}"
        for name, shape in shapes.items():
            if np.load(folder / f"{name}.npy", mmap_mode="r").shape != shape:
                return f"{name}.npy is damaged"
        np.load(folder / DONE)
    except (OSError, ValueError, EOFError):
        return "unfinished or damaged"
    return None


def _fill(
    folder: Path,
    arrays: dict[str, tuple[tuple[int, ...], str]],
    rows: Iterable[tuple[int, dict[str, np.ndarray]]],
) -> None:
    """Write rows in place, and a row's flag after it.

    Plain writes and not a memory map: a full disk is an error and no signal that kills, and two
    computers that share a file system do not overwrite each other's pages.
    """
    names = [*arrays, DONE.removesuffix(".npy")]
    files = {name: (folder / f"{name}.npy").open("r+b", buffering=0) for name in names}
    starts = {name: np.load(folder / f"{name}.npy", mmap_mode="r").offset for name in names}
    try:
        for row, values in rows:
            for name, (shape, dtype) in arrays.items():
                data = np.ascontiguousarray(values[name].reshape(shape), dtype).tobytes()
                _write_all(files[name].fileno(), data, starts[name] + row * len(data))
            _write_all(files["done"].fileno(), b"\x01", starts["done"] + row)
    finally:
        for file in files.values():
            file.close()


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def cache_folder(cache: str, cohort: Cohort, content: str) -> Path:
    """Return the folder in `cache` for `content` of `cohort`, named after the cohort's path."""
    return Path(cache) / f"{slug(cohort.root)}{cohort.selection}" / content


def slug(path: str | Path) -> str:
    """Return `path` as one folder name."""
    return "_".join(part for part in Path(path).parts if part not in ("/", ".", ".."))


class Levels:
    """Intensities in 0..1 that are stored as the nearest of 256 levels; rows are read as numbers.

    Args:
        stored: uint8 (N, ...), memory-mapped.
    """

    def __init__(self, stored: np.ndarray) -> None:
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return one row as float32; no voxel is off by more than 1/510."""
        return np.divide(self.stored[row], 255, dtype=np.float32)


def packed_images(
    cohort: Cohort,
    rows: pd.DataFrame,
    folder: Path,
    team: Team,
    storage: Storage = Storage.float16,
) -> np.ndarray | Levels:
    """Return the images of `rows`, (X, Y, Z) each; every volume is checked on the way.

    Stored as uint8 they lie in another folder, beside this one, and are read as float32.
    """
    ids = list(rows["participant_id"])
    key = {"cohort": cohort.content_hash(), "participants": ids}
    coarse = storage is Storage.uint8
    if coarse:
        folder = folder.with_name(f"{folder.name}_{storage.value}")
    arrays = {"images": (tuple(cohort.grid.shape), storage.value)}

    def compute(wanted: Sequence[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for row in shown(wanted, "reading images", team):
            image = cohort.read(ids[row])
            yield row, {"images": np.rint(255 * image) if coarse else image}

    images = packed(folder, key, len(ids), arrays, compute, team)["images"]
    return Levels(images) if coarse else images


def shown(items: Sequence, description: str, team: Team) -> Iterable:
    """Show one process's progress for all, since all have as much to do."""
    return track(items, description) if team.rank == 0 else items
