"""The end of a run of `preprocess`: who is in the cohort, who is not and why, and the page."""

from pathlib import Path

import pandas as pd

from brain_ldm.cohorts.files import write_text
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.errors import InputError
from brain_ldm.preprocessing import qc
from brain_ldm.preprocessing.scan import Scan

SCORE = "template_correlation"
# What BIDS does not know.
IGNORED = (
    "qc",
    "qc/**",
    "rejected",
    "rejected/**",
    "rejected.tsv",
    "reject.txt",
    "**/*_xfm.txt",
)


def conclude(
    writer: CohortWriter,
    scans: list[Scan],
    source: Path,
    unusable: dict[str, str],
    reject: Path,
    least_correlation: float,
) -> None:
    """Write the tables and the page; put aside images of scans that are rejected.

    Covariates are those that the scans have now; a scan that has left the source keeps its own.

    Args:
        writer: of the cohort; has the rows of all scans that came to MNI space.
        scans: of the source.
        source: its folder.
        unusable: reasons by participant_id, of scans that did not.
        reject: text file of participant_ids and subjects that a person rejected.
        least_correlation: with the template; below it a scan is rejected.

    Raises:
        InputError: no scan is left.
    """
    out, done, by_eye = writer.root, writer.done(), qc.read_reject(reject)
    present = {scan.participant_id: scan for scan in scans}
    rows, lines = [], []
    for pid in sorted(present.keys() | done.keys()):
        scan, row = present.get(pid), done.get(pid)
        if row is not None and scan is not None:
            own = ("participant_id", "subject", "split", "source", SCORE)
            row = {**{name: row[name] for name in own}, **scan.row}
        score = None if row is None else row[SCORE]
        subject = row["subject"] if scan is None else scan.subject
        if scan is not None and scan.problem is not None:
            reason = scan.problem
        elif scan is None and _still_there(row["source"], source):
            reason = "not among the scans that the options choose now"
        elif pid in by_eye or subject in by_eye:
            why = by_eye.get(pid) or by_eye.get(subject, "")
            reason = f"rejected by eye: {why}".removesuffix(": ")
        elif row is None:
            reason = unusable[pid]
        elif score < least_correlation:
            reason = f"registration failed: correlation {score:.2f} with the template"
        else:
            reason = ""
            rows.append(row)
        if row is not None:
            _put_aside(out, pid, bool(reason))
        file = where(scan, source) if row is None else row["source"]
        lines.append({"participant_id": pid, "source": file, "score": score, "reason": reason})
    rejected = pd.DataFrame([line for line in lines if line["reason"]])
    write_text(
        out / "rejected.tsv",
        rejected.reindex(columns=["participant_id", "source", "score", "reason"]).to_csv(
            sep="\t", index=False, na_rep="n/a", lineterminator="\n"
        ),
    )
    write_text(out / ".bidsignore", "\n".join(IGNORED) + "\n")
    qc.write_page(out, lines, least_correlation, reject)
    if not rows:
        raise InputError(f"{out}: no scan can be used; {out / 'rejected.tsv'} says why")
    writer.finish(rows)
    print(
        f"{out}: {len(rows)} brains of {writer.grid.resolution:g} mm, {len(rejected)} scans "
        f"rejected (rejected.tsv); look at {out / 'qc' / 'index.html'}"
    )


def where(scan: Scan, source: Path) -> str:
    """The scan's file, from the source folder on."""
    path = scan.path.relative_to(source) if scan.path.is_relative_to(source) else scan.path
    return f"{path}:{scan.member}" if scan.member else str(path)


def _still_there(file: str, source: Path) -> bool:
    """Whether the file of a row, as `where` gives it, lies in the source."""
    path, zipped, _ = file.partition(".zip:")
    return (source / f"{path}.zip" if zipped else source / file).exists()


def _put_aside(root: Path, participant_id: str, rejected: bool) -> None:
    """Move a participant's folder out of the cohort, or back into it."""
    places = root / participant_id, root / "rejected" / participant_id
    source, target = places if rejected else reversed(places)
    if source.exists():
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
