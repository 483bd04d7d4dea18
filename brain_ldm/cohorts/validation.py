"""All that is wrong with a cohort, told at once and before training.

Beside the rules that `open_cohort` knows, voxels and values are judged too. What the rules need to
know of an image's voxels is found once, in all cores, and remembered by the file's checksum: so one
image that was made again is the only one that is read again.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from brain_ldm.cohorts.cohort import SPLITS, Cohort, read_grids, read_tables, row_of
from brain_ldm.cohorts.covariates import COVARIATES, PLAUSIBLE
from brain_ldm.cohorts.files import write_text
from brain_ldm.cohorts.findings import ERROR, WARNING, Finding, refuse, show, write_findings
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.cohorts.images import (
    AGAIN,
    check_grids,
    check_voxels,
    common_grid,
    read_voxels,
    voxel_facts,
)
from brain_ldm.errors import InputError
from brain_ldm.shards import locked
from brain_ldm.workers import cores, each

BRIGHT = 0.995  # share of voxels; a head fills a field of view so far that these reach into it
DIM = 0.3  # of 0..1: where the brightest tissue stays below, intensities were hardly scaled to 0..1
BEYOND = 0.2  # of the training split's range: what a model still reaches


@dataclass(frozen=True)
class Facts:
    """What rules need to know of an image's voxels.

    Attributes:
        not_finite, low, high: as `voxel_facts` finds them.
        bright: what the share `BRIGHT` of the voxels stays below.
        digest: of all voxels.
    """

    not_finite: int
    low: float
    high: float
    bright: float
    digest: str


class SeveralErrors(InputError):
    """Errors in a cohort that were shown as a table and written to a file."""


@dataclass(frozen=True)
class Survey:
    """What a cohort's tables and headers tell.

    Attributes:
        root: the cohort's folder.
        table: participants.tsv as `read_tables` gives it.
        grids: of each image, in the order of `table`; None where it cannot be told.
        findings: what is wrong so far.
        cohort: None if that is an error.
    """

    root: Path
    table: pd.DataFrame
    grids: dict[Path, VoxelGrid | None]
    findings: list[Finding]
    cohort: Cohort | None


def survey(root: str | Path, need: Sequence[str]) -> Survey:
    """Find what is wrong with a cohort's tables and its images' headers.

    Args:
        root: the cohort's folder.
        need: columns that training cannot do without.

    Raises:
        InputError: there is no cohort.
    """
    root = Path(root)
    description, table, findings = read_tables(root, need)
    findings += check_rows(root / "participants.tsv", table, need, {f.where for f in findings})
    grids, sound = {}, {}
    for path, grid, found in read_grids(root, table["participant_id"].tolist()):
        grids[path] = grid
        findings += found
        if not found:
            sound[path] = grid
    if sound:
        findings += check_grids(sound, common_grid(sound.values()))
    cohort = None
    if all(finding.severity != ERROR for finding in findings):
        cohort = Cohort(root, table, common_grid(sound.values()), description)
    return Survey(root, table, grids, findings, cohort)


def validate(seen: Survey, memory: Path, report: Path, first: bool = True) -> list[Finding]:
    """Judge voxels too; if there are errors then, show, write down and refuse all findings.

    Args:
        seen: the cohort.
        memory: file that remembers what voxels are like.
        report: file for all findings, where there are several errors.
        first: whether this process tells; others of the same run only stop.

    Returns:
        Warnings.

    Raises:
        InputError: the only error.
        SeveralErrors: how many there are.
    """
    findings = [*seen.findings, *judge_voxels(seen, memory)]
    errors = [finding for finding in findings if finding.severity == ERROR]
    if len(errors) > 1:
        if first:
            show(findings, seen.root)
            report.parent.mkdir(parents=True, exist_ok=True)
            write_findings(findings, report)
        raise SeveralErrors(
            f"{len(errors)} errors in {seen.root}: see the table above, all in {report}"
        )
    refuse(errors)
    return findings


def judge_voxels(seen: Survey, memory: Path) -> Iterator[Finding]:
    """Find what is wrong with the voxels of all images of the cohort's shape."""
    grids = {path: grid for path, grid in seen.grids.items() if grid is not None}
    if not grids:
        return
    shape = Counter(grid.shape for grid in grids.values()).most_common(1)[0][0]
    facts = examine([path for path, grid in grids.items() if grid.shape == shape], shape, memory)
    for path, found in facts.items():
        yield from [found] if isinstance(found, Finding) else check_facts(path, found)
    yield from check_twins(facts, dict(zip(seen.grids, seen.table["split"], strict=True)))


def check_rows(
    path: Path, table: pd.DataFrame, need: Sequence[str], wrong: set[str]
) -> Iterator[Finding]:
    """Splits have rows, needed values are there, plausible, and none is far from the training's.

    Args:
        path: of participants.tsv.
        table: as `read_tables` gives it.
        need: columns that training cannot do without.
        wrong: where something is wrong already.
    """
    for split in SPLITS:
        if not (table["split"] == split).any():
            what, mend = f"no row has the split {split}", "give it to some"
            yield Finding(str(path), what, mend, ERROR if split == "train" else WARNING)
    for name in need:
        missing = table.index[table[name].isna()]
        unknown = sum(row_of(path, table, row) not in wrong for row in missing)
        if unknown and len(missing) < len(table):
            what = f"{unknown} of {len(table)} rows have no value"
            mend = "fill them in where they are known"
            yield Finding(f"{path}: column {name}", what, mend, WARNING)
    for name in PLAUSIBLE:
        yield from _check_plausible(path, table, name, name in need)
    for name in need:
        if name not in COVARIATES or not COVARIATES[name].levels:
            yield from _check_range(path, table, name)


def _check_plausible(path: Path, table: pd.DataFrame, name: str, needed: bool) -> Iterator[Finding]:
    unit = COVARIATES[name].unit
    low, high = PLAUSIBLE[name]
    values = table[name].dropna()
    outside = values[~values.between(low, high)]
    if outside.empty:
        return
    limits = f"{low:,} to {high:,} {unit}"
    mend = f"give {unit}"
    if unit == "mm3" and low <= 1000 * outside.median() <= high:
        mend += ": these look like ml (cm3), multiply by 1000"
    if 2 * len(outside) > len(values):
        what = f"{len(outside)} of {len(values)} values lie outside {limits}"
        severity = ERROR if needed else WARNING
        yield Finding(f"{path}: column {name}", what, mend, severity)
        return
    # A volume may be that of a rare brain; nobody's age is.
    severity = ERROR if needed and name == "age" else WARNING
    for row, value in outside.items():
        what = f"{name} is {value:g}, outside {limits}"
        yield Finding(row_of(path, table, row), what, mend, severity)


def _check_range(path: Path, table: pd.DataFrame, name: str) -> Iterator[Finding]:
    known = table[name].between(*PLAUSIBLE.get(name, (-np.inf, np.inf)))
    train = table[known & (table["split"] == "train")][name]
    others = table[known & table["split"].isin(("val", "test"))][name]
    if train.empty:
        return
    low, high = train.min(), train.max()
    reach = BEYOND * (high - low)
    far = others[~others.between(low - reach, high + reach)]
    if len(far):
        what = (
            f"{len(far)} of {len(others)} val and test rows ({far.min():g} to {far.max():g}) lie "
            f"far outside the training split's {low:g} to {high:g}"
        )
        mend = "a model knows nothing there: check them, or train on such rows too"
        yield Finding(f"{path}: column {name}", what, mend, WARNING)


def check_facts(path: Path, facts: Facts) -> Iterator[Finding]:
    """Voxels keep the rules, and tissue fills the range of intensities."""
    broken = list(check_voxels(path, facts.not_finite, facts.low, facts.high))
    yield from broken
    if not broken and facts.bright < DIM:
        what = f"{BRIGHT:.1%} of the voxels stay below {facts.bright:.2g}"
        yield Finding(str(path), what, "scale intensities so that brains fill 0..1", WARNING)


def check_twins(facts: dict[Path, Facts | Finding], splits: dict[Path, str]) -> Iterator[Finding]:
    """No two images have the same voxels; in two splits it would be cheating."""
    first: dict[str, Path] = {}
    for path, found in facts.items():
        if isinstance(found, Finding) or found.low == found.high:
            continue
        twin = first.setdefault(found.digest, path)
        if twin != path:
            here, there = splits[path], splits[twin]
            what = f"the same voxels as {twin.name} ({there}, here {here})"
            severity = ERROR if here != there else WARNING
            yield Finding(str(path), what, "keep one of them", severity)


def examine(
    paths: Sequence[Path], shape: Sequence[int], memory: Path
) -> dict[Path, Facts | Finding]:
    """Find or recall what rules need to know of each image; a finding where it cannot be read.

    Args:
        paths: of images whose headers tell this shape.
        shape: voxels along each axis.
        memory: file that remembers; only images that it does not know are read, by one of the
            processes that come here at once.
    """
    try:
        lock = memory.with_name(f".{memory.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        with locked(lock):
            stamps = {path: _stamp(path) for path in paths}
            known = _recall(memory)
            facts = {}
            for path in paths:
                stamp, remembered = known.get(path.name, (None, None))
                facts[path] = remembered if stamp == stamps[path] else None
            new = [path for path in paths if facts[path] is None]
            job = partial(_facts, shape=tuple(shape))
            try:
                for path, found in each(job, new, "checking voxels", cores(), died=_died):
                    facts[path] = found
            finally:
                if new:
                    text = {
                        path.name: (stamps[path], *astuple(found))
                        for path, found in facts.items()
                        if isinstance(found, Facts)
                    }
                    write_text(memory, json.dumps(text))
    except OSError as error:
        raise InputError(
            f"{memory.parent}: cannot be written ({error.strerror}); give data.cache another folder"
        ) from None
    return facts


def _recall(memory: Path) -> dict[str, tuple[str, Facts]]:
    try:
        rows = json.loads(memory.read_text())
        return {name: (stamp, Facts(*facts)) for name, (stamp, *facts) in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _stamp(path: Path) -> str:
    """A file's length, and the checksum and length of its content that gzip keeps at its end."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(-min(8, length), os.SEEK_END)
        return f"{length} {file.read().hex()}"


def _facts(path: Path, shape: tuple[int, ...]) -> Facts | Finding:
    try:
        image = read_voxels(path, shape)
    except InputError as error:
        return Finding.told(str(path), error, f"{path}: ")
    not_finite, low, high = voxel_facts(image)
    # Every other voxel along each axis is enough for a quantile.
    bright = math.nan if not_finite else float(np.quantile(image[::2, ::2, ::2], BRIGHT))
    digest = hashlib.sha256(image.tobytes()).hexdigest()[:32]
    return Facts(not_finite, low, high, bright, digest)


def _died(path: Path) -> Finding:
    return Finding(str(path), "the process that read it died", AGAIN)
