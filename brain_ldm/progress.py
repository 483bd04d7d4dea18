"""Progress of long work: a bar with the time left, and nothing where no terminal looks on."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def track(items: Iterable, description: str, total: int | None = None) -> Iterator:
    """Yield from `items` while a bar on stderr shows count, elapsed time and time left."""
    console = Console(stderr=True)
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        yield from progress.track(items, total=total, description=description)
