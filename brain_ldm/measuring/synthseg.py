"""SynthSeg as an instrument: FreeSurfer's `mri_synthseg`, called on some images at a time.

Billot et al. 2023 (Medical Image Analysis 86); the program resamples to 1 mm by itself and its
volumes are soft: sums of posteriors, in mm³.
"""

import csv
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.measuring.config import SynthSegConfig
from brain_ldm.measuring.instrument import Instrument, Outcome
from brain_ldm.progress import bar
from brain_ldm.workers import cores

PROGRAM = "mri_synthseg"
_BRAIN = (
    "cerebral white matter",
    "cerebral cortex",
    "cerebellum white matter",
    "cerebellum cortex",
    "thalamus",
    "caudate",
    "putamen",
    "pallidum",
    "hippocampus",
    "amygdala",
    "accumbens area",
    "ventral DC",
)


def _both(*structures: str) -> tuple[str, ...]:
    return tuple(f"{side} {structure}" for structure in structures for side in ("left", "right"))


# The columns of the program's table that make up each volume: the grey and white matter and the
# ventricles of cohorts.labels. The 3rd and 4th ventricle and csf are in neither.
STRUCTURES = {
    "ventricular_volume": _both("lateral ventricle", "inferior lateral ventricle"),
    "brain_volume": (*_both(*_BRAIN), "brain-stem"),
}


def open_synthseg(config: SynthSegConfig) -> Instrument:
    """`mri_synthseg` as it lies on the PATH.

    Raises:
        InputError: it does not, or an option is out of range.
    """
    for name in ("threads", "chunk"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"synthseg.{name} is {value}: give 1 or more")
    program = shutil.which(PROGRAM)
    if program is None:
        raise InputError(
            f"segmenter=synthseg: no {PROGRAM} on the PATH; it is part of FreeSurfer 7.3 or later "
            "(docs/measuring.md), or measure with a model of ours: segmenter=models/…"
        )
    mode = ["--robust"] if config.robust else ["--fast"] if config.fast else []
    threads = ["--threads", str(config.threads or cores())]
    flags = [*mode, *threads, *(["--cpu"] if config.cpu else [])]

    def measure(
        cohort: Cohort, participants: list[str], work: Path
    ) -> Iterator[tuple[str, Outcome]]:
        # A call that was killed leaves the volumes of the images that it had done.
        try:
            there = _read_volumes(work / "volumes.csv")
        except InputError:
            there = {}
        done = {pid: there[pid] for pid in participants if isinstance(there.get(pid), dict)}
        yield from done.items()
        # In the order in which the program goes through a folder.
        left = sorted(set(participants) - done.keys(), key=_image_name)
        call = _Calls([program], flags, cohort, work)
        with bar() as progress:
            task = progress.add_task("measuring", total=len(left))
            for start in range(0, len(left), config.chunk):
                for pid, outcome in call(left[start : start + config.chunk]):
                    yield pid, outcome
                    progress.advance(task)
        yield from call.suspected()

    return Instrument(" ".join([PROGRAM, *mode, f"({_version(Path(program))})"]), measure)


def _version(program: Path) -> str:
    """The FreeSurfer that the program belongs to, as FreeSurfer names it."""
    stamp = program.resolve().parents[1] / "build-stamp.txt"
    return stamp.read_text().strip() if stamp.is_file() else "of unknown version"


def _image_name(participant_id: str) -> str:
    return f"{participant_id}.nii.gz"


class _Calls:
    """Calls of the program, and what is to be made of one that ends without any volume.

    The program goes on after an image that it fails on, and says why. A call that ends with nothing
    at all has either met an image that kills it, or cannot work here: the first image is left out,
    and if the next call gives nothing either, it is the program.
    """

    def __init__(self, program: list[str], flags: list[str], cohort: Cohort, work: Path) -> None:
        self.program, self.flags, self.cohort, self.work = program, flags, cohort, work
        self.suspect: tuple[str, str] | None = None  # participant, and why

    def __call__(self, participants: list[str]) -> Iterator[tuple[str, Outcome]]:
        """Each participant with its outcome, in the program's order."""
        waiting = []
        for pid in participants:
            try:
                self.cohort.read(pid)
                waiting.append(pid)
            except InputError as error:
                yield pid, str(error)
        while waiting:
            found, code = self._run(waiting)
            why = _last_line(self.work, code)
            if not found:
                if self.suspect is not None:
                    raise InputError(
                        f"{' '.join([PROGRAM, *self.flags])} gives no volumes: {why}; what it "
                        f"printed is in {self.work}"
                    )
                self.suspect, waiting = (waiting[0], why), waiting[1:]
                continue
            yield from self.suspected()
            if code == 0:
                found = {pid: found.get(pid, f"no volumes ({why})") for pid in waiting}
            yield from ((pid, self._told(pid, found[pid])) for pid in waiting if pid in found)
            waiting = [pid for pid in waiting if pid not in found]

    def suspected(self) -> Iterator[tuple[str, Outcome]]:
        """The image that was left out, once it is known that it was at fault."""
        if self.suspect is not None:
            pid, why = self.suspect
            self.suspect = None
            yield pid, self._told(pid, why)

    def _told(self, participant_id: str, outcome: Outcome) -> Outcome:
        if isinstance(outcome, dict):
            return outcome
        return f"{self.cohort.image_path(participant_id)}: {PROGRAM}: {outcome}"

    def _run(self, participants: list[str]) -> tuple[dict[str, Outcome], int]:
        """Volumes, or the program's complaint, by participant; and its exit status."""
        work = self.work
        shutil.rmtree(work, ignore_errors=True)
        images, segmentations, table = work / "images", work / "segmentations", work / "volumes.csv"
        images.mkdir(parents=True)
        for pid in participants:
            (images / _image_name(pid)).symlink_to(self.cohort.image_path(pid).resolve())
        arguments = ["--i", images, "--o", segmentations, "--vol", table, *self.flags]
        with (work / "output.txt").open("w") as out, (work / "errors.txt").open("w") as err:
            try:
                code = subprocess.run(
                    [*self.program, *map(str, arguments)],
                    stdin=subprocess.DEVNULL,  # it may ask whether to install TensorFlow
                    stdout=out,
                    stderr=err,
                    check=False,
                ).returncode
            except OSError as error:
                raise InputError(f"{self.program[0]}: cannot be run ({error.strerror})") from None
        found = _complaints((work / "output.txt").read_text(errors="replace"))
        found |= _read_volumes(table)
        shutil.rmtree(segmentations, ignore_errors=True)
        return {pid: found[pid] for pid in participants if pid in found}, code


def _read_volumes(table: Path) -> dict[str, Outcome]:
    """Ventricular and brain volume in mm³ by participant, of the rows that are whole.

    Raises:
        InputError: a column is missing.
    """
    if not table.is_file():
        return {}
    text = table.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()  # the last one may be cut short
    if not lines:
        return {}
    header, *rows = csv.reader(lines)
    position = {name.strip().lower(): index for index, name in enumerate(header)}
    for name in ("subject", *(s.lower() for parts in STRUCTURES.values() for s in parts)):
        if name not in position:
            raise InputError(
                f"{table}: {PROGRAM} wrote no column '{name}', only {', '.join(header)}"
            )
    found = {}
    for row in rows:
        if len(row) != len(header):
            continue
        try:
            found[row[position["subject"]]] = {
                name: sum(float(row[position[part.lower()]]) for part in parts)
                for name, parts in STRUCTURES.items()
            }
        except ValueError as error:
            found[row[position["subject"]]] = str(error)
    return found


def _complaints(output: str) -> dict[str, str]:
    """Why the program failed on an image, by participant: the last line of each traceback."""
    block = r"problem occured with image (.+?) :\n(.*?)resuming program execution"
    found = {}
    for path, traceback in re.findall(block, output, re.DOTALL):
        lines = traceback.split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it failed")
        found[Path(path).name.removesuffix(".nii.gz")] = last
    return found


def _last_line(work: Path, code: int) -> str:
    """The last line that the program printed, on stderr if it did there, and how it ended."""
    ended = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    for name in ("errors.txt", "output.txt"):
        lines = (work / name).read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), None)
        if last is not None:
            return f"{last[:200]} ({ended})"
    return ended
