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


def bar() -> Progress:
    """Return a bar on stderr: description, count, elapsed time, time left; silent elsewhere."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def track(items: Iterable, description: str, total: int | None = None) -> Iterator:
    """Yield from `items` while a bar shows how far it is."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with bar() as progress:
        yield from progress.track(items, total=total, description=description)
