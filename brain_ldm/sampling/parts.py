"""The cohorts that a synthetic set consists of: one, or several of limited size.

Thousands of folders in one are what file systems suffer from, so a large set may be
`out/part-000`, `out/part-001`, …, each a BIDS cohort by itself.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from brain_ldm.cohorts.files import remove_temporaries, write_text
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.errors import InputError
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.data_card import FIGURES, REPORTED, needs_card, write_card
from brain_ldm.sampling.manifest import MANIFEST, kept, write_manifest
from brain_ldm.sampling.verify import FINDINGS
from brain_ldm.shards import locked

# What BIDS does not know.
IGNORED = (MANIFEST, REPORTED, FINDINGS, FIGURES, f"{FIGURES}/**")


@dataclass(frozen=True)
class Part:
    """A cohort of the set, and who belongs in it."""

    writer: CohortWriter
    participants: list[str]

    @property
    def concluded(self) -> bool:
        """Whether it is finished and tidied, and no lost image was asked for again."""
        return self.writer.finished and not self.writer.work.exists()


def open_parts(
    config: SampleConfig,
    participants: list[str],
    open_writer: Callable[[Path, dict], CohortWriter],
) -> list[Part]:
    """Open the set's cohorts, begun or not.

    Args:
        config: of it, `out` and `folder_size`.
        participants: all of the set, in their order.
        open_writer: of a cohort's folder and of what is special to it, for its GeneratedBy.

    Raises:
        InputError: a folder holds something else.
    """
    out, size = Path(config.out), config.folder_size
    if size is None:
        return [Part(open_writer(out, {"Brains": len(participants)}), participants)]
    if any((out / name).exists() for name in ("dataset_description.json", ".unfinished")):
        raise InputError(
            f"{out}: one cohort without parts; leave folder_size out, or choose another out"
        )
    shares = [participants[start : start + size] for start in range(0, len(participants), size)]
    parts = []
    for number, share in enumerate(shares):
        special = {"Part": f"{number}/{len(shares)}", "Brains": len(share)}
        parts.append(Part(open_writer(out / f"part-{number:03d}", special), share))
    return parts


def conclude(
    part: Part, covariates: Sequence[str], model_hash: str, licence: str | None = None
) -> int:
    """Finish a cohort, its data card too, if all of its brains are there; return how many are not.

    Every process asks this after its last brain, so the last of them finishes the cohort. All is
    written under a lock, and `.unfinished` goes last: whoever is killed here is gone on from.
    """
    writer = part.writer
    if part.concluded:
        return 0
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(writer.work / "identity.json"))
        except FileNotFoundError:
            if not writer.finished:
                raise
            writer.remove_work()  # another process has finished it, or was killed just here
            return 0
        left = _left(part)
        if not left:
            for folder in (writer.root, writer.root / FIGURES):
                remove_temporaries(folder)
            writer.remove_left_overs()
            write_manifest(writer, part.participants, covariates, model_hash)
            if not writer.finished:
                write_text(writer.root / ".bidsignore", "\n".join(IGNORED) + "\n")
                writer.finish(tidy=False)
            if needs_card(writer.root, licence):
                write_card(writer.root, licence)
    if not left:
        writer.remove_work()  # unlocked: NFS removes no file that is open
    return left


def _left(part: Part) -> int:
    writer, participants = part.writer, part.participants
    if not writer.finished:
        # Names alone first: of a large set most shards end while others are at work.
        there = {path.stem for path in (writer.work / "rows").glob("sub-*.json")}
        if missing := len(set(participants) - there):
            return missing
    return len(participants) - len(kept(writer, participants))
