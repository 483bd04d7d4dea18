"""`measure`: volumes of every brain of a cohort, into its participants.tsv.

Outcomes are kept one by one as they come, so that a measurement that was stopped goes on where it
was; the table is written once all are there, by whichever shard is the last.
"""

import math
import sys
from collections.abc import Iterator

import pandas as pd

from brain_ldm.cohorts.cohort import Cohort, open_cohort
from brain_ldm.cohorts.covariates import COVARIATES, MEASURED
from brain_ldm.errors import InputError
from brain_ldm.measuring.agreement import print_agreement
from brain_ldm.measuring.config import MeasureConfig
from brain_ldm.measuring.instrument import VOLUMES, Instrument, Outcome
from brain_ldm.measuring.journal import Journal
from brain_ldm.measuring.table import MISSING, Participants, put, read_participants, write
from brain_ldm.shards import locked, parse_shard

# Where phantoms keep which label map each was drawn from.
GROUPED_BY = "label_map"


def measure(config: MeasureConfig) -> None:
    """Measure the brains of a cohort that are not measured yet; print what came of it.

    A brain that cannot be measured stays n/a and is told on stderr; the next call tries it again.

    Raises:
        InputError: an option is wrong, the instrument is not there or does not fit the cohort, or
            not one brain could be measured.
    """
    shard, shards = parse_shard(config.shard)
    cohort = open_cohort(config.cohort)
    _check_within(config, cohort)
    synthetic = is_synthetic(cohort)
    if synthetic and config.replace:
        raise InputError(
            f"replace=true: {cohort.root} is synthetic, and its covariates are what was asked for"
        )
    instrument = open_instrument(config, cohort)
    journal = Journal(cohort.root, instrument.name, config.shard)
    participants = cohort.table["participant_id"].tolist()
    before = read_participants(cohort.root)
    # Tried now, so that a table that cannot be written to is told before the work.
    nothing = [MISSING] * len(participants)
    put(before, {c: nothing for name in VOLUMES for c in (name, f"measured_{name}")}, {})
    done = measured_volumes(before, instrument).keys() | {
        pid for pid, outcome in journal.read().items() if isinstance(outcome, dict)
    }
    todo = [pid for pid in participants[shard::shards] if pid not in done]
    try:
        if todo:
            journal.keep(_finite(cohort, instrument.measure(cohort, todo, journal.work)))
        with locked(cohort.root / "dataset_description.json"):
            complete = _conclude(cohort, instrument, journal, config.replace, synthetic, todo)
    except OSError as error:
        raise InputError(f"{cohort.root}: cannot be written ({error.strerror or error})") from None
    if complete:
        _compare(cohort, config)


def open_instrument(config: MeasureConfig, cohort: Cohort) -> Instrument:
    """What `config.segmenter` names.

    Raises:
        InputError: it is not there, or does not fit the cohort.
    """
    if config.segmenter == "synthseg":
        from brain_ldm.measuring.synthseg import open_synthseg

        return open_synthseg(config.synthseg)
    from brain_ldm.measuring.network import open_segmenter

    return open_segmenter(config, cohort)


def _finite(
    cohort: Cohort, outcomes: Iterator[tuple[str, Outcome]]
) -> Iterator[tuple[str, Outcome]]:
    for pid, outcome in outcomes:
        if isinstance(outcome, dict) and not all(map(math.isfinite, outcome.values())):
            yield pid, f"{cohort.image_path(pid)}: its volumes are no finite numbers"
        else:
            yield pid, outcome


def is_synthetic(cohort: Cohort) -> bool:
    """Whether no scanner saw the cohort's brains: their files carry `desc-synth`."""
    return any("_desc-synth_" in cohort.image_path(p).name for p in cohort.table["participant_id"])


def measured_volumes(table: Participants, instrument: Instrument) -> dict[str, dict[str, str]]:
    """The measured columns' text by participant, where both volumes are this instrument's."""
    for name in VOLUMES:
        there = table.columns.get(f"measured_{name}", {})
        if there.get("Description") != _description(name, instrument):
            return {}
    values = pd.DataFrame({name: table.numbers(f"measured_{name}") for name in VOLUMES})
    rows = table.frame[values.notna().all(axis=1)]
    return {
        row["participant_id"]: {name: row[f"measured_{name}"] for name in VOLUMES}
        for row in rows.to_dict("records")
    }


def _conclude(
    cohort: Cohort,
    instrument: Instrument,
    journal: Journal,
    replace: bool,
    synthetic: bool,
    todo: list[str],
) -> bool:
    """Write the table if every brain has its outcome, and tell; whether it has."""
    outcomes = journal.read()
    before = read_participants(cohort.root)
    known = measured_volumes(before, instrument)
    participants = before.frame["participant_id"].tolist()
    left = [pid for pid in participants if pid not in known and pid not in outcomes]
    problems = {
        pid: text
        for pid, text in outcomes.items()
        if isinstance(text, str) and pid in (todo if left else participants)
    }
    if left:
        print(f"{cohort.root}: {len(left)} of {len(participants)} brains are left to other shards")
        _tell(problems)
        return False
    if len(problems) == len(participants):
        journal.remove()
        raise InputError(
            f"{cohort.root}: not one of its {len(participants)} brains could be measured; the "
            f"first: {next(iter(problems.values()))}"
        )
    fields, notes = _fields(before, instrument, outcomes, replace, synthetic)
    after = put(
        before,
        fields,
        {
            name: {
                "Description": _description(name.removeprefix("measured_"), instrument),
                "Units": "mm3",
            }
            for name in fields
        },
    )
    if (after.text, after.columns) == (before.text, before.columns):
        print(f"{cohort.root}: measured already by {instrument.name}")
    else:
        write(after)
        count = len(participants) - len(problems)
        print(f"{cohort.root}: {count} brains measured by {instrument.name}")
    for note in notes:
        print(note)
    _tell(problems)
    journal.remove()
    return True


def _fields(
    before: Participants,
    instrument: Instrument,
    outcomes: dict[str, Outcome],
    replace: bool,
    synthetic: bool,
) -> tuple[dict[str, list[str]], list[str]]:
    """The text of each column that is to be written, and what is to be told about columns."""
    known = measured_volumes(before, instrument)
    participants = before.frame["participant_id"].tolist()
    covariates, measured, notes = {}, {}, []
    old = before.columns.get("measured_ventricular_volume", {}).get("Description")
    if not known and before.numbers("measured_ventricular_volume").notna().any():
        was = old.rpartition(MEASURED)[2] if old else "an unknown instrument"
        notes.append(f"what {was} had measured is replaced")
    for name in VOLUMES:
        column = measured[f"measured_{name}"] = [
            known[pid][name] if pid in known else _text(outcomes[pid], name) for pid in participants
        ]
        if synthetic:
            continue
        now = before.numbers(name)
        if replace or now.isna().all() or (known and _is_copy(before, name)):
            covariates[name] = column
        else:
            notes.append(
                f"{name} stays as it was, with {now.isna().sum()} of {len(now)} rows n/a; "
                "replace=true puts the measured volume into all"
            )
    return covariates | measured, notes


def _is_copy(table: Participants, name: str) -> bool:
    """Whether all that a covariate has was filled from the measured column beside it."""
    there = table.numbers(name)
    return bool((there == table.numbers(f"measured_{name}"))[there.notna()].all())


def _text(outcome: Outcome, name: str) -> str:
    return f"{outcome[name]:.1f}" if isinstance(outcome, dict) else MISSING


def _description(name: str, instrument: Instrument) -> str:
    return f"{COVARIATES[name].description}{MEASURED}{instrument.name}"


def _tell(problems: dict[str, str]) -> None:
    for text in problems.values():
        print(f"measure: not measured: {text}", file=sys.stderr)


def _compare(cohort: Cohort, config: MeasureConfig) -> None:
    """Print how what was measured agrees with what the table has from elsewhere."""
    table = read_participants(cohort.root)
    volumes = [
        name for name in VOLUMES if table.numbers(name).notna().any() and not _is_copy(table, name)
    ]
    within = config.within or (GROUPED_BY if GROUPED_BY in table.frame else None)
    numbers = {name: table.numbers(name) for name in volumes}
    numbers |= {f"measured_{name}": table.numbers(f"measured_{name}") for name in volumes}
    if volumes:
        frame = table.frame.assign(**numbers)
        print_agreement(frame, volumes, within)


def _check_within(config: MeasureConfig, cohort: Cohort) -> None:
    if config.within is not None and config.within not in cohort.table:
        raise InputError(
            f"within={config.within}: {cohort.root}/participants.tsv has no such column, only "
            f"{', '.join(cohort.table.columns)}"
        )
