"""What is measured so far, kept in the cohort until its table is written."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from brain_ldm.measuring.instrument import Outcome

FOLDER = ".measuring"


class Journal:
    """Outcomes of one instrument in `<cohort>/.measuring/<its key>/`, a line a brain.

    Every process writes a file of its own, so that shards do not disturb each other and the end of
    a line that was cut short is lost alone.

    Args:
        root: folder of the cohort.
        instrument: its name.
        shard: this process's part, as `i/n`; its work folder outlives it.
    """

    def __init__(self, root: Path, instrument: str, shard: str) -> None:
        self.root = root
        self.folder = root / FOLDER / hashlib.sha256(instrument.encode()).hexdigest()[:16]
        self.file = self.folder / f"{uuid.uuid4().hex}.jsonl"
        self.work = self.folder / f"work-{shard.replace('/', '-of-')}"

    def read(self) -> dict[str, Outcome]:
        """The outcome of each participant so far, in all processes; volumes before problems."""
        found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text().split("\n"):
                try:
                    pid, outcome = json.loads(line)
                except ValueError:  # cut short, or the end
                    continue
                if isinstance(outcome, dict) or pid not in found:
                    found[pid] = outcome
        return found

    def keep(self, outcomes: Iterator[tuple[str, Outcome]]) -> None:
        """Write each outcome as it comes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.file.open("w") as file:
            for pid, outcome in outcomes:
                file.write(json.dumps([pid, outcome]) + "\n")
                file.flush()

    def remove(self) -> None:
        """Remove what is kept of this instrument."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()
