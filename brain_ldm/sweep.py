"""Sweeps (`-m`): one folder for what a sweep leaves behind, and a table of what its jobs came to.

Each job, in whatever process its launcher runs it, records how it ended in the sweep's folder; the
process that started the sweep reads the records. So the table is the same for every sweeper and
launcher, and it lists the jobs of this sweep alone.
"""

import csv
import json
import math
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from brain_ldm.errors import InputError

RECORDS = ".jobs"  # in the sweep's folder while it runs
SUMMARY = "sweep.json"
RESULT = Path("run") / "result.json"  # in the folder of a job


class Interrupted(InputError):
    """Work was asked to stop, by a signal or Ctrl-C, and can be gone on with.

    A command leaves with exit code 75 instead of 2, and a sweep in this process stops with it.
    """


@dataclass
class Job:
    """How a job of a sweep ended."""

    job: int  # its number
    overrides: list[str]
    # finished; failed: the user's mistake, or a value that is not finite; crashed: any other
    # exception; unfinished: stopped from outside, or running still.
    state: str = "unfinished"
    metric: str | None = None  # what its value is, as `val/loss`; null: its command has none
    value: float | None = None  # lower is better
    step: int | None = None
    error: str | None = None  # one line


def in_sweep() -> bool:
    """Tell whether this process works on a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def job_folder(out: str) -> str:
    """Return the folder of this job: `<out>/<job number>` in a sweep, otherwise `out`."""
    return f"{out}/{HydraConfig.get().job.num}" if in_sweep() else out


def write_result(out: str | Path, metric: str, value: float | None, step: int) -> None:
    """Write `<out>/run/result.json`, last of all: how good a finished run is, lower is better.

    Args:
        out: folder of the run.
        metric: what the value is, as `val/loss`.
        value: None where there was nothing to validate on.
        step: at which the value was reached.
    """
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    result = {"metric": metric, "value": value, "step": step, "overrides": overrides}
    _write(Path(out) / RESULT, json.dumps(result, indent=2) + "\n")


def begin(config: DictConfig) -> Path:
    """Prepare the folder of a sweep and make its path the same for all jobs.

    Args:
        config: composed with Hydra's own node, in the process that starts the sweep; changed.

    Raises:
        InputError: the folder holds an earlier sweep or cannot be written, or the sweeper or the
            launcher is set up in a way that cannot work.
    """
    _check_plugins(config)
    folder = Path(_sweep_folder(config))
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        # Jobs compose their config from these.
        quoted = str(folder).replace("'", r"\'")
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
    if (folder / SUMMARY).exists() and OmegaConf.select(config, "resume") != "auto":
        raise InputError(
            f"{folder}: holds an earlier sweep ({SUMMARY}); choose another out, remove the folder, "
            "or go on with it: resume=auto"
        )
    shutil.rmtree(folder / RECORDS, ignore_errors=True)
    try:
        (folder / RECORDS).mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder


def _check_plugins(config: DictConfig) -> None:
    if OmegaConf.select(config, "hydra.sweeper.storage") is not None:
        raise InputError(
            "hydra.sweeper.storage: this version of Optuna's sweeper cannot keep a study in a "
            "database on Python 3.11 or newer; leave it out, the study is kept in memory"
        )
    direction = OmegaConf.select(config, "hydra.sweeper.direction")
    if direction is not None and getattr(direction, "name", direction) != "minimize":
        raise InputError(
            "hydra.sweeper.direction: the value of a job is lower for a better model; "
            "only minimize makes sense"
        )
    launcher = OmegaConf.select(config, "hydra.launcher._target_")
    if launcher.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        raise InputError(
            "hydra/launcher=submitit_slurm: there is no srun here; start it where sbatch works, or "
            "take hydra/launcher=submitit_local"
        )


def _sweep_folder(config: DictConfig) -> str:
    """Resolve hydra.sweep.dir before any job runs.

    A group that is itself swept has no choice yet; `experiment=a,b` stands in as `a,b`.
    """
    with read_write(config.hydra):
        choices = config.hydra.runtime.choices
        for override in config.hydra.overrides.task:
            group, _, value = override.partition("=")
            if group in choices and choices[group] is None:
                choices[group] = re.sub(r"[^\w,.-]", "", value)
    current = HydraConfig.instance()
    before = current.cfg
    current.set_config(config)  # the resolver `${hydra:…}` otherwise works within jobs alone
    try:
        return str(config.hydra.sweep.dir)
    finally:
        current.cfg = before


def attempt(name: str, out: str | None, work: Callable[[], Any]) -> float | None:
    """Do the work of one job of a sweep and record how it ended.

    Args:
        name: of the command, for messages.
        out: its option of that name, in whose folder a finished job may leave its result.
        work: returns the job's value, a number, lower is better; anything else counts as none.

    Returns the value; infinity for a job that failed, with a line on stderr: so the other jobs go
    on, and a sweeper that learns from values turns elsewhere.

    Raises:
        Interrupted, or any other exception that is not an error: the job is left unfinished.
    """
    current = HydraConfig.get()
    job = Job(current.job.num, list(current.overrides.task))
    record(job)
    try:
        value = work()
        if isinstance(value, int | float) and not math.isfinite(value):
            raise InputError(f"ended with the value {value}; try other options")
    except Interrupted as error:
        job.error = one_line(error)
        record(job)
        raise
    except InputError as error:
        job.state, job.error, value = "failed", one_line(error), math.inf
    except Exception as error:
        traceback.print_exc()
        job.state, value = "crashed", math.inf
        job.error = f"{type(error).__name__}: {one_line(error)}"
    else:
        value = float(value) if isinstance(value, int | float) else None
        result = _read(Path(job_folder(out)) / RESULT) if out else {}
        job.state, job.value = "finished", value
        job.metric, job.step = result.get("metric"), result.get("step")
    record(job)
    if job.error:
        print(f"{name}: job {job.job}: {job.error}", file=sys.stderr)
    return value


def record(job: Job) -> None:
    """Write into the sweep's folder how a job stands; of several ranks, the first does."""
    if os.environ.get("SLURM_PROCID", "0") == "0":
        path = Path(HydraConfig.get().sweep.dir) / RECORDS / f"{job.job}.json"
        _write(path, json.dumps(asdict(job)))


def finish(name: str, folder: Path) -> list[Job]:
    """Print the table of a sweep and its best job; write sweep.tsv and sweep.json into `folder`.

    Returns the jobs by number; those that never began are not among them.
    """
    jobs = [Job(**_read(path)) for path in (folder / RECORDS).glob("*.json")]
    jobs.sort(key=lambda job: job.job)
    if jobs:
        rows, best = table(jobs), best_job(jobs)
        errors = any(job.error for job in jobs)
        print(aligned(rows if errors else [row[:-1] for row in rows]))
        again = None
        if best is not None:
            again = f"python -m brain_ldm.{name} {shlex.join(best.overrides)}".strip()
            print(f"best: job {best.job}, {best.metric or 'value'} {best.value:.6g}\n  {again}")
        with (folder / "sweep.tsv").open("w", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
        summary = {
            "best": None if best is None else best.job,
            "command": again,
            "jobs": [asdict(job) for job in jobs],
        }
        _write(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    shutil.rmtree(folder / RECORDS, ignore_errors=True)
    return jobs


def table(jobs: list[Job]) -> list[list[str]]:
    """Return a header and a row a job: number, the overrides that vary, value, step, state."""
    options = [dict(override.partition("=")[::2] for override in job.overrides) for job in jobs]
    keys = dict.fromkeys(key for option in options for key in option)
    varying = [key for key in keys if len({option.get(key) for option in options}) > 1]
    metrics = {job.metric for job in jobs if job.state == "finished"}
    metric = metrics.pop() if len(metrics) == 1 else None
    rows = [["job", *varying, metric or "value", "step", "state", "error"]]
    for job, option in zip(jobs, options, strict=True):
        value = "n/a" if job.value is None else f"{job.value:.6g}"
        step = "n/a" if job.step is None else str(job.step)
        chosen = [option.get(key, "n/a") for key in varying]
        rows.append([str(job.job), *chosen, value, step, job.state, job.error or "n/a"])
    return rows


def best_job(jobs: list[Job]) -> Job | None:
    """Return the job of the lowest value; None where there is no value, or several metrics."""
    valued = [job for job in jobs if job.value is not None]
    if len({job.metric for job in valued}) != 1:
        return None
    return min(valued, key=lambda job: job.value)


def aligned(rows: list[list[str]]) -> str:
    """Set rows of equal length in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def one_line(error: BaseException) -> str:
    """Return an exception's message in one line."""
    return " ".join(str(error).split())


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
