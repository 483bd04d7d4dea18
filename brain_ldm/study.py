"""`python -m brain_ldm.study -m study=cohort_size`: answer a question by many models."""

import dataclasses
from pathlib import Path

from brain_ldm.command import command
from brain_ldm.errors import InputError
from brain_ldm.studies.config import StudyConfig
from brain_ldm.sweep import in_sweep, job_folder


def finish(out: Path) -> None:
    """Join the points that have ended."""
    from brain_ldm.studies.study import conclude

    conclude(out)


@command("study", StudyConfig, after=finish)
def main(config: StudyConfig) -> None:
    """Run one point of a study."""
    if not in_sweep():
        raise InputError("a study has many points, so add -m: python -m brain_ldm.study -m …")
    from brain_ldm.studies.study import run_point

    run_point(dataclasses.replace(config, out=job_folder(config.out)))


if __name__ == "__main__":
    main()
