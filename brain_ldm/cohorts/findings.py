"""What is wrong with a cohort: one finding a line, refused, shown as a table, or written down."""

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from brain_ldm.cohorts.files import write_text
from brain_ldm.errors import InputError

ERROR, WARNING = "error", "warning"
SHOWN = 5  # findings that have the same mend; the rest is counted
FIELDS = ("severity", "where", "what", "mend")


@dataclass(frozen=True)
class Finding:
    """Something wrong with a cohort.

    Attributes:
        where: the file, and the row or column if it is participants.tsv.
        what: is wrong there.
        mend: what to do about it.
        severity: ERROR, or WARNING for what training can live with.
    """

    where: str
    what: str
    mend: str
    severity: str = ERROR

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.mend}"

    @classmethod
    def told(cls, where: str, error: InputError, prefix: str) -> "Finding":
        """What an error says about `where` behind a prefix: what is wrong; how to mend it."""
        said = str(error).removeprefix(prefix)
        what, _, mend = said.rpartition("; ")
        return cls(where, what, mend) if what else cls(where, said, "put it right")


def refuse(findings: Iterable[Finding]) -> None:
    """Raise the first error among the findings as an InputError of one line."""
    for finding in findings:
        if finding.severity == ERROR:
            raise InputError(str(finding))


def alike(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Group findings that are mended alike, errors before warnings."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.mend), []).append(finding)
    return [group for key, group in sorted(groups.items(), key=lambda item: item[0][0])]


def warn(findings: Iterable[Finding]) -> None:
    """Print a line to stderr for all findings that are mended alike."""
    for first, *rest in alike(findings):
        more = f" (and {len(rest)} more like it)" if rest else ""
        print(f"{first.severity}: {first}{more}", file=sys.stderr)


def show(findings: Iterable[Finding], root: Path) -> None:
    """Print a table of the findings in the cohort `root` to stderr.

    Ruled where a terminal looks on, otherwise aligned text. Of those that are mended alike the
    first ones are shown and the others counted.
    """
    rows = []
    for group in alike(findings):
        for f in group[:SHOWN]:
            rows.append((f.severity, f.where.removeprefix(f"{root}/"), f.what, f.mend))
        if more := group[SHOWN:]:
            rows.append((more[0].severity, "", f"and {len(more)} more like these", ""))
    console = Console(stderr=True)
    if console.is_terminal:
        table = Table(box=box.SIMPLE_HEAD)
        for name in FIELDS:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row), style="red" if row[0] == ERROR else "yellow")
        console.print(table)
        return
    widths = [max(len(row[i]) for row in (FIELDS, *rows)) for i in range(len(FIELDS))]
    for row in (FIELDS, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip(), file=sys.stderr)


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """Write all findings to a table of tab-separated values."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows((f.severity, f.where, f.what, f.mend) for f in findings)
    write_text(path, text.getvalue())
