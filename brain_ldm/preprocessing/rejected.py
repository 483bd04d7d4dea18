"""Scans that cannot be used: why, kept beside the rows of those that can."""

import json
from pathlib import Path

from brain_ldm.cohorts.files import write_json
from brain_ldm.preprocessing.scan import Scan


def record(folder: Path, scan: Scan, reason: str, again: bool = False) -> None:
    """Keep why a scan cannot be used, and of which version of its file that is said.

    again: whether the next run is to try it once more.
    """
    data = {
        "participant_id": scan.participant_id,
        "reason": reason,
        "file": version(scan),
        "again": again,
    }
    write_json(folder / f"{scan.participant_id}.json", data)


def reasons(folder: Path, scans: list[Scan]) -> dict[str, str]:
    """Why each of these scans was rejected, by participant_id.

    One whose file has changed since is not among them: it deserves another trial.
    """
    found = {}
    for scan in scans:
        path = folder / f"{scan.participant_id}.json"
        if path.exists():
            data = json.loads(path.read_text())
            if data["file"] == version(scan):
                found[scan.participant_id] = data["reason"]
    return found


def forget(folder: Path, scans: list[Scan]) -> None:
    """Forget those of these scans that are to be tried again."""
    for scan in scans:
        path = folder / f"{scan.participant_id}.json"
        if path.exists() and json.loads(path.read_text()).get("again"):
            path.unlink()


def version(scan: Scan) -> list[int]:
    """Size and time of a scan's file: another version of it is another scan."""
    try:
        stat = scan.path.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
