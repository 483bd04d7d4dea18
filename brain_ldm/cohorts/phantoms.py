"""A cohort of phantoms: brains whose age, sex and volumes are known exactly."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from brain_ldm.cohorts.config import PhantomConfig
from brain_ldm.cohorts.drawing import Phantom, participant_id, work_grid
from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.cohorts.labelmaps import COLUMN, draw_from_label_maps, open_label_maps
from brain_ldm.cohorts.template import draw_phantom, load_template
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.errors import InputError
from brain_ldm.workers import cores, each


def write_phantom_cohort(config: PhantomConfig) -> Path:
    """Write a cohort of phantoms; go on with an interrupted one, and leave a finished one be.

    Returns:
        Its folder.

    Raises:
        InputError: for an option out of range, label maps that cannot be used, or a folder that
            holds something else.
    """
    for name in ("n", "workers"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: give 1 or more")
    if config.seed < 0:
        raise InputError(f"seed is {config.seed}: give 0 or more")
    grid = paper_grid(config.resolution)
    source = "MNI152NLin2009aSym as nilearn carries it"
    if config.label_maps is not None:
        maps = open_label_maps(config.label_maps)
        source = f"label maps, sha256 {maps.digest}"
    generated_by = {
        "Name": "brain_ldm phantom",
        "Description": "Drawn brains of exactly known age, sex and volumes",
        "Template": source,
        "Number": config.n,
        "Resolution": config.resolution,
        "Seed": config.seed,
    }
    writer = CohortWriter(
        config.out,
        "Phantom brains",
        generated_by,
        grid,
        synthetic=True,
        skull_stripped=config.label_maps is None,
        extra_columns=None if config.label_maps is None else COLUMN,
    )
    if writer.finished:
        print(f"{config.out}: already there")
        return writer.root
    done = writer.done()
    missing = [i for i in range(config.n) if participant_id(config.seed, i) not in done]
    workers = config.workers or cores()
    step = round(work_grid(config.resolution).resolution)
    if config.label_maps is None:
        draw = draw_phantom
        load_template(step)  # once, here: a forked worker shares it
    else:
        needed = sorted({maps.choice(config.seed, i) for i in missing})
        prepare = partial(maps.prepare, folder=writer.work, resolution=step)
        for _ in each(prepare, needed, "aligning label maps", workers):
            pass
        draw = partial(draw_from_label_maps, maps, writer.work)
    job = _Job(writer, draw, config.seed, config.resolution)
    for _ in each(job, missing, "drawing phantoms", workers):
        pass
    writer.finish()
    print(f"{config.out}: {config.n} phantoms of {config.resolution} mm")
    return writer.root


@dataclass(frozen=True)
class _Job:
    """Draws and writes one phantom, in whatever process."""

    writer: CohortWriter
    draw: Callable[[int, int, int], Phantom]
    seed: int
    resolution: int

    def __call__(self, index: int) -> None:
        phantom = self.draw(self.seed, index, self.resolution)
        self.writer.add(phantom.row, phantom.image, phantom.labels, phantom.label_grid.affine)
