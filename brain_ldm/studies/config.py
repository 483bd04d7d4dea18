"""Options of `study`: commands for each point of a question, and what to read off their reports."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class StudyConfig:
    """A question that many trainings, samplings and evaluations answer together.

    The points are jobs of a Hydra multirun: conf/study/ says over which values of `point`.
    """

    title: str = MISSING  # the question
    # What differs between points, by name.
    point: dict[str, Any] = field(default_factory=dict)
    # Options by name, for `commands` to choose from: ${options.${point.name}}.
    options: dict[str, str] = field(default_factory=dict)
    # What each point runs, one after the other: a command of brain_ldm with its options. $OUT
    # stands for the point's own folder, <out>/<its number>; the last one writes $OUT/report.
    commands: list[str] = MISSING
    x: str = MISSING  # the value of `point` along the figure's axis
    series: str | None = None  # the value of `point` that has a colour each; null: one line
    dashes: str | None = None  # the value of `point` that has a kind of line each; null: one kind
    # What the figure and the table show: places in metrics.json by title, such as
    # synthetic.realism.fid; `synthetic` stands for the only synthetic cohort.
    measures: dict[str, str] = MISSING
    out: str = "reports/study_${hydra:runtime.choices.study}"
    resume: str | None = None  # auto: go on with a study that was stopped
