"""Many raw scans to a cohort: in several processes, in shards, and again where it stopped.

What is done lies in the cohort's `.unfinished` folder, one small file a scan: its row, or why it is
rejected. So a run that was killed goes on, scans that arrive later join a finished cohort, and the
tables are made anew at the end of every run from what is there.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from brain_ldm.cohorts.cohort import SPACE
from brain_ldm.cohorts.grid import RESOLUTIONS, paper_grid
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.errors import InputError
from brain_ldm.preprocessing import qc, rejected
from brain_ldm.preprocessing.conclude import SCORE, conclude, where
from brain_ldm.preprocessing.config import Extraction, Layout, PreprocessConfig, Registration
from brain_ldm.preprocessing.mni import brain_mask, write_transform
from brain_ldm.preprocessing.prepare import prepare
from brain_ldm.preprocessing.scan import Failed, Scan, Unusable
from brain_ldm.preprocessing.sources import find_scans
from brain_ldm.shards import locked, parse_shard
from brain_ldm.workers import cores, each

VERSION = "_file"  # of a done row: which version of the scan's file it was made of
DIED = "its process died twice: out of memory, or a library crashed on this scan"


def preprocess(config: PreprocessConfig) -> Path:
    """Bring raw scans to MNI space; go on with what was begun.

    Returns:
        The folder of the cohort. It is a cohort once all shards are done.

    Raises:
        InputError: an option, the table or the folder is wrong, or no scan can be used.
    """
    shard, shards = parse_shard(config.shard)
    check_options(config)
    sources = find_scans(config)
    out = Path(config.out or default_out(sources.layout, config.resolution))
    if sources.layout is Layout.folder and out.resolve().is_relative_to(
        Path(config.source).resolve()
    ):
        raise InputError(
            f"out={out}: lies in the source, where its images would be taken for scans; "
            "give another"
        )
    reject = Path(config.reject) if config.reject else out / "reject.txt"
    by_eye = qc.read_reject(reject)
    writer = CohortWriter(
        out,
        "Preprocessed T1w scans",
        described(config),
        paper_grid(config.resolution),
        synthetic=False,
        skull_stripped=config.extraction is not Extraction.none,
        extra_columns={
            **sources.extra_columns,
            SCORE: {
                "Description": "Pearson correlation with the MNI152 template inside its brain, "
                "both normalised locally and smoothed by a Gaussian of sigma 4 mm"
            },
        },
        grows=True,
    )
    for note in sources.notes:
        print(note)
    aside = writer.work / "rejected"
    mine = [s for s in sources.scans if crc32(s.participant_id.encode()) % shards == shard]
    rejected.forget(aside, mine)
    mine = left(writer, aside, mine, by_eye)
    if mine:
        aside.mkdir(exist_ok=True)
        (out / "qc").mkdir(exist_ok=True)
        brain_mask(writer.grid)  # once, here: a forked worker shares it
        job = Job(writer, aside, config)
        try:
            for _ in each(job, mine, "preprocessing", config.workers or cores(), died=job.give_up):
                pass
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    with locked(writer.work / "identity.json"):
        waiting = left(writer, aside, sources.scans, by_eye)
        if waiting:
            print(f"{out}: {len(waiting)} of {len(sources.scans)} scans are left to other shards")
        else:
            unusable = rejected.reasons(aside, sources.scans)
            conclude(
                writer,
                sources.scans,
                Path(config.source),
                unusable,
                reject,
                config.least_correlation,
            )
    return out


def left(
    writer: CohortWriter, aside: Path, scans: list[Scan], by_eye: dict[str, str]
) -> list[Scan]:
    """The scans of which it is not known yet whether they can be used, and nobody rejected them.

    One whose file has changed since it was done is among them.
    """
    done, unusable = writer.done(), rejected.reasons(aside, scans)

    def known(scan: Scan) -> bool:
        pid = scan.participant_id
        same = done.get(pid, {}).get(VERSION) == rejected.version(scan)
        return same or pid in unusable or pid in by_eye or scan.subject in by_eye

    return [scan for scan in scans if scan.problem is None and not known(scan)]


def check_options(config: PreprocessConfig) -> None:
    """Refuse what makes no sense.

    Raises:
        InputError: an option makes no sense, or needs what is not installed.
    """
    if config.resolution not in RESOLUTIONS:
        raise InputError(f"resolution is {config.resolution}: give 1, 2 or 4 (mm)")
    if config.workers is not None and config.workers < 1:
        raise InputError(f"workers is {config.workers}: give 1 or more")
    low, high = config.percentiles if len(config.percentiles) == 2 else (1, 0)
    if not 0 <= low < high <= 100:
        raise InputError(f"percentiles is {config.percentiles}: give two, rising, within 0 to 100")
    if not -1 <= config.least_correlation <= 1:
        raise InputError(f"least_correlation is {config.least_correlation:g}: give -1 to 1")
    if config.registration is Registration.unires:
        from brain_ldm.preprocessing.unires import find_unires

        find_unires()
    if config.extraction is Extraction.deepbet:
        from brain_ldm.preprocessing.extraction import check_deepbet

        check_deepbet()


def default_out(layout: Layout, resolution: int) -> str:
    """Where the experiments look for such a cohort."""
    if layout is Layout.ukb and resolution == 1:
        return "cohorts/ukb"
    return "cohorts/brains" + (f"_{resolution}mm" if resolution > 1 else "")


def described(config: PreprocessConfig) -> dict:
    """What the images depend on, for dataset_description.json."""
    return {
        "Name": "brain_ldm preprocess",
        "Description": "T1w scans registered rigidly to the MNI152 template that nilearn carries",
        "Source": str(Path(config.source).resolve()),
        "Resolution": config.resolution,
        "Registration": config.registration.value,
        "BiasCorrection": config.bias_correction,
        "Extraction": config.extraction.value,
        "Percentiles": config.percentiles,
    }


@dataclass(frozen=True)
class Job:
    """Brings one scan to MNI space and keeps it, or why not, in whatever process."""

    writer: CohortWriter
    aside: Path
    config: PreprocessConfig

    def __call__(self, scan: Scan) -> None:
        writer, pid = self.writer, scan.participant_id
        try:
            prepared = prepare(scan, self.config)
        except Unusable as error:
            rejected.record(self.aside, scan, str(error), again=isinstance(error, Failed))
            return
        except (MemoryError, ValueError, RuntimeError, ArithmeticError) as error:
            # A scan that a library chokes on must not stop the others.
            line = " ".join(str(error).split())[:200]
            again = isinstance(error, MemoryError)
            rejected.record(self.aside, scan, f"{type(error).__name__}: {line}", again)
            return
        # Of an earlier version of its file, which was put aside.
        shutil.rmtree(writer.root / "rejected" / pid, ignore_errors=True)
        picture = writer.root / "qc" / f"{pid}.jpg"
        qc.draw(prepared.image, writer.grid, brain_mask(writer.grid), picture)
        folder = writer.root / pid / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        transform = folder / f"{pid}_from-T1w_to-{SPACE}_mode-image_xfm.txt"
        write_transform(transform, prepared.matrix)
        source = where(scan, Path(self.config.source))
        row = {
            "participant_id": pid,
            "subject": scan.subject,
            **scan.row,
            SCORE: round(prepared.correlation, 4),
            "source": source,
            VERSION: rejected.version(scan),
        }
        writer.add(row, prepared.image, sidecar={"Sources": [source]})

    def give_up(self, scan: Scan) -> None:
        """Reject a scan that twice ended the process that worked on it."""
        rejected.record(self.aside, scan, DIED, again=True)
