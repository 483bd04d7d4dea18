"""A study: every point runs commands of ours, and its report is a row of the study's table."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from brain_ldm.cohorts.files import write_text
from brain_ldm.errors import InputError
from brain_ldm.studies.config import StudyConfig
from brain_ldm.studies.figure import draw
from brain_ldm.sweep import Interrupted

POINT = "point.json"
COMMANDS = ("phantom", "measure", "train", "sample", "evaluate")


def run_point(config: StudyConfig) -> None:
    """Run a point's commands and keep what its report says, in `<out>/point.json`.

    A command that is done already says so and ends at once, so a point that was stopped goes on.

    Raises:
        InputError: a command is none of ours, ended with an error, or left no such measure.
    """
    check(config)
    out = Path(config.out)
    for command in config.commands:
        run_command(command, out)
    path = out / "report" / "metrics.json"
    if not path.is_file():
        raise InputError(f"{path}: no report there; let the last of commands write out=$OUT/report")
    metrics = json.loads(path.read_text())
    found = {title: read_off(metrics, place) for title, place in config.measures.items()}
    study = {name: getattr(config, name) for name in ("title", "x", "series", "dashes")}
    features = metrics.get("features") or {}
    floor = metrics["real"].get("floor") or {}
    of = {
        "features": features.get("name"),
        "sha256": features.get("sha256"),
        "n": floor.get("n"),
        "n_real": floor.get("n_real"),
    }
    point = {"study": study, "point": config.point, "measures": found, "distances": of}
    write_text(out / POINT, json.dumps(point, indent=2) + "\n")


def check(config: StudyConfig) -> None:
    """Refuse a study that cannot work, before its first point runs."""
    for key in ("x", "series", "dashes"):
        name = getattr(config, key)
        if name is not None and name not in config.point:
            raise InputError(f"{key} is {name!r}, but point has only {', '.join(config.point)}")
    if not config.commands or not config.measures:
        raise InputError("a study needs commands and measures")
    for command in config.commands:
        name = command.split(maxsplit=1)[0] if command.strip() else ""
        if name not in COMMANDS:
            raise InputError(f"commands: {name!r} is none of {', '.join(COMMANDS)}")


def run_command(command: str, out: Path) -> None:
    """Run `train experiment=…` and the like in a process of its own, with $OUT as `out`.

    Raises:
        InputError: it failed; it has told why.
        Interrupted: it was stopped, or this process is.
    """
    name, *options = (word.replace("$OUT", str(out)) for word in shlex.split(command))
    print(f"$ {shlex.join(['python', '-m', f'brain_ldm.{name}', *options])}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", f"brain_ldm.{name}", *options])
    with ended_together(process):
        code = process.wait()
    if code == 75:
        raise Interrupted("stopped; the same command with resume=auto goes on")
    if code:
        raise InputError(f"`{command}` ended with exit code {code}")


@contextmanager
def ended_together(process: subprocess.Popen) -> Iterator[None]:
    """Stop a command with the process that started it, and leave it time to save."""

    def stop(*_: object) -> None:
        raise Interrupted("stopped; the same command with resume=auto goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def read_off(metrics: dict[str, Any], place: str) -> dict[str, float | None]:
    """Return `value`, `low` and `high` of a measure of metrics.json.

    Args:
        metrics: what metrics.json holds.
        place: keys with dots between them. It names a dict with these three (or a share for the
            value), or a number beside which `<name>_low` and `<name>_high` stand, or neither; true
            counts as 1.

    Raises:
        InputError: there is no such place.
    """
    node: Any = metrics
    above: dict[str, Any] = {}
    for key in place.split("."):
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = dict(enumerate(node))
            key = int(key)
        if not isinstance(node, dict) or key not in node:
            there = ", ".join(node) if isinstance(node, dict) else "nothing"
            raise InputError(f"measures: {place} is not in metrics.json; {key} is none of {there}")
        above, node = node, node[key]
        if above is metrics and key == "synthetic" and len(node) == 1:
            node = next(iter(node.values()))
    if isinstance(node, dict):
        value = node.get("value", node.get("share"))
        return {"value": value, "low": node.get("low"), "high": node.get("high")}
    last = place.rpartition(".")[2]
    node = int(node) if isinstance(node, bool) else node
    return {"value": node, "low": above.get(f"{last}_low"), "high": above.get(f"{last}_high")}


def conclude(out: Path) -> None:
    """Write table.tsv and figure.png of all points that ended, and print the table.

    out: folder of the study.
    """
    found = sorted(out.glob(f"*/{POINT}"), key=lambda path: (len(path.parent.name), path))
    points = [json.loads(path.read_text()) for path in found]
    if not points:
        return
    table = pd.DataFrame([row(point) for point in points])
    table["distances"] = [distances(point) for point in points]
    write_text(out / "table.tsv", table.to_csv(sep="\t", index=False, na_rep="n/a"))
    draw(out / "figure.png", points, distances(points[0]))
    print(
        f"{points[0]['study']['title']}\n{table.drop(columns='distances').to_string(index=False)}"
    )
    print(f"{distances(points[0])}\n{out / 'figure.png'}")


def distances(point: dict[str, Any]) -> str:
    """What FID and its like were taken of, in a line; without it they say nothing."""
    of = point["distances"]
    if of["features"] is None:
        return "no features"
    return (
        f"features: {of['features']} {of['sha256'][:12]}, {of['n']} against {of['n_real']} brains"
    )


def row(point: dict[str, Any]) -> dict[str, str]:
    """A point as a row of the table: its values, and each measure with its interval."""
    cells = {name: str(value) for name, value in point["point"].items()}
    for title, found in point["measures"].items():
        text = "n/a" if found["value"] is None else f"{found['value']:.4g}"
        if found["low"] is not None and found["high"] is not None:
            text += f" [{found['low']:.4g}, {found['high']:.4g}]"
        cells[title] = text
    return cells
