"""Going on with a training that was stopped."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.models import WEIGHTS
from brain_ldm.training.checkpoints import checkpoints_in, newest_whole, step_of, write_whole
from brain_ldm.training.config import Schedule, TrainConfig
from brain_ldm.training.data import rows_per_step

CONFIG, ORIGIN = "config.yaml", "origin.json"
# What may change from one start to the next: it does not change what is learned beyond rounding.
# Devices, batch size and accumulation may, as long as a step sees as many rows; max_steps may grow.
FREE = {
    "out", "resume", "data.batch_size", "data.cache", "data.workers", "trainer.accelerator",
    "trainer.accumulate", "trainer.activation_checkpointing", "trainer.checkpoint_every",
    "trainer.compile", "trainer.devices", "trainer.log_every", "trainer.max_steps",
    "trainer.nodes", "trainer.strategy", "trainer.val_every",
}  # fmt: skip
FREE_GROUPS = ("logger.", "pictures.")


def find_checkpoint(config: TrainConfig) -> Path | None:
    """Return the checkpoint to go on from, or None to begin.

    Raises:
        InputError: `out` holds a run or a model and `resume` is not given; the run to go on with
            is another experiment's, or is not there, or all its checkpoints are damaged.
    """
    out = Path(config.out)
    if config.resume is None:
        if (out / WEIGHTS).exists():
            raise InputError(
                f"{out}: holds a trained model; choose another out or remove the folder"
            )
        found = checkpoints_in(out / "run" / "checkpoints")
        if found:
            raise InputError(
                f"{out}: holds a run that was stopped (step {step_of(found[0])}): add resume=auto "
                "to go on with it, or remove the folder"
            )
        return None
    run = out / "run" if config.resume == "auto" else Path(config.resume)
    if not checkpoints_in(run / "checkpoints"):
        if config.resume == "auto":
            return None
        raise InputError(f"resume={run}: no checkpoints there; give a run folder, <model>/run")
    check_config(config, run)
    return newest_whole(run / "checkpoints")


def resolved(config: TrainConfig) -> dict[str, Any]:
    """Return the config as plain data."""
    return OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)


def check_config(config: TrainConfig, run: Path) -> None:
    """Refuse to go on with a run whose options differ in what is learned."""
    try:
        before = dict(leaves(yaml.safe_load((run / CONFIG).read_text())))
    except (OSError, yaml.YAMLError):
        raise InputError(
            f"{run / CONFIG}: cannot be read; this run cannot be gone on with"
        ) from None
    now = dict(leaves(resolved(config)))
    for name in sorted(before.keys() | now.keys()):
        free = name in FREE or name.startswith(FREE_GROUPS)
        if not free and before.get(name) != now.get(name):
            raise InputError(
                f"{run}: a run of another experiment: {name} was {before.get(name)}, now it is "
                f"{now.get(name)}; give the same options, or another out"
            )
    sharded = [leaf["trainer.strategy"] == "fsdp" for leaf in (before, now)]
    if sharded[0] != sharded[1]:
        raise InputError(
            f"{run}: trainer.strategy was {before['trainer.strategy']}, now it is "
            f"{now['trainer.strategy']}; optimisers in shards and whole ones are not exchanged"
        )
    steps = before["trainer.max_steps"], config.trainer.max_steps
    schedule = getattr(config.task, "lr_schedule", Schedule.one_cycle)
    if steps[0] != steps[1] and schedule is not Schedule.constant:
        raise InputError(
            f"{run}: trainer.max_steps was {steps[0]}, now it is {steps[1]}; a learning rate that "
            "follows it cannot be stretched, give the same"
        )


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every leaf."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def check_origin(config: TrainConfig, cohort: Cohort, sources: dict[str, str], run: Path) -> None:
    """Refuse to go on if the data, or the models that it goes through, are no longer the same.

    Args:
        config: of the training.
        cohort: that it learns from.
        sources: hash of each model that it builds on, by name.
        run: the run to go on with.
    """
    path = run / ORIGIN
    before = json.loads(path.read_text()) if path.is_file() else {}
    now = origin(config, cohort, sources)
    for name, value in now.items():
        if before.get(name) != value:
            raise InputError(
                f"{run}: cannot be gone on with, its {name} was {before.get(name)}, now it is "
                f"{value}"
            )


def origin(config: TrainConfig, cohort: Cohort, sources: dict[str, str]) -> dict[str, Any]:
    """Return what a run comes from."""
    return {
        "rows per step": rows_per_step(config),
        "cohort (hash)": cohort.content_hash(),
        **{f"{name} (hash)": value for name, value in sources.items()},
    }


def save_origin(config: TrainConfig, cohort: Cohort, sources: dict[str, str], run: Path) -> None:
    """Write the resolved config of a run and what it comes from."""
    texts = {
        CONFIG: yaml.safe_dump(resolved(config), sort_keys=False),
        ORIGIN: json.dumps(origin(config, cohort, sources), indent=1),
    }
    for name, text in texts.items():
        write_whole(run / name, lambda path, text=text: path.write_text(text))
