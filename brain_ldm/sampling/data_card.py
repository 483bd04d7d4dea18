"""The data card of a synthetic cohort: README.md, made of what lies in the cohort's folder."""

from pathlib import Path
from typing import Any

import pandas as pd

from brain_ldm.cohorts.files import read_json, write_json, write_text
from brain_ldm.errors import InputError
from brain_ldm.sampling.covariate_plot import draw_covariates
from brain_ldm.sampling.reported import read_report, reported

CARD, FIGURES = "README.md", "figures"
REPORTED = "evaluation.json"  # what a report said of the cohort
PLOT = f"{FIGURES}/covariates.png"
# Columns that are no covariates; nor are those that `measure` adds.
OTHERS = ("participant_id", "split", "seed", "source_id", "subject")
MEASURED = "measured_"

NOT_PEOPLE = """\
- **Not people.** No row of `participants.tsv` is a person, and no scanner saw these brains. A model
  can repeat brains that it learnt from; the evaluation below looks for that, if there is one."""
ASKED_LIKE_PEOPLE = """\
- **Covariates may be people's.** No scanner saw these brains, but the covariates of each are those
  of a row of {Table}, which the column `source_id` names if that table does. If its rows are
  people, treat `participants.tsv` with the care that it asks for. A model can repeat brains that it
  learnt from; the evaluation below looks for that, if there is one."""
CHANGED_PEOPLE = """\
- **Not free of people.** Each image is a brain of the cohort {From} under other covariates; the
  column `source_id` says whose. Treat it with the care that those scans ask for."""
NOT_EITHER = """\
- **Not measured.** The covariates are those that the model was asked for. What a segmenter finds in
  the images stands in `measured_…` columns, where somebody has measured.
- **Not evidence about brains.** What the training data lacked or had wrong, these have wrong too.
- **Not for decisions about a person**, and no medical device."""


def needs_card(root: Path, licence: str | None) -> bool:
    """Whether a finished cohort has no README.md, or is to have another licence."""
    if not (root / CARD).exists():
        return True
    there = read_json(root / "dataset_description.json").get("License")
    return licence is not None and licence != there


def add_report(roots: list[Path], report: Path) -> None:
    """Put what a report says into the README.md of each cohort that it is about.

    Raises:
        InputError: there is no report, or it is about none of them.
    """
    metrics = read_report(report)
    found = {root: reported(metrics, root) for root in roots}
    if not any(found.values()):
        raise InputError(
            f"report={report}: is not about {roots[0]}; evaluate that, or leave it out"
        )
    for root, said in found.items():
        if said is not None:
            write_json(root / REPORTED, said)
            write_card(root)


def write_card(root: Path, licence: str | None = None) -> None:
    """Write the README.md of a finished cohort, and all that it shows.

    Args:
        root: the cohort.
        licence: for dataset_description.json; None leaves what is there.
    """
    description = read_json(root / "dataset_description.json")
    if licence is not None and licence != description.get("License"):
        description["License"] = licence
        write_json(root / "dataset_description.json", description)
    columns = read_json(root / "participants.json")
    path = root / "participants.tsv"
    table = pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False)
    others = [name for name in table if name in OTHERS or name.startswith(MEASURED)]
    covariates = table.drop(columns=others).dropna(axis=1, how="all")
    if not covariates.empty:
        (root / FIGURES).mkdir(exist_ok=True)
        draw_covariates(root / PLOT, covariates, columns)
    evaluation = read_json(root / REPORTED) if (root / REPORTED).exists() else None
    write_text(root / CARD, card(description, table, covariates, columns, evaluation))


def card(
    description: dict[str, Any],
    table: pd.DataFrame,
    covariates: pd.DataFrame,
    columns: dict[str, dict],
    evaluation: dict[str, Any] | None,
) -> str:
    """Return the text of README.md.

    Args:
        description: dataset_description.json.
        table: participants.tsv.
        covariates: of the table, the columns that were asked for and have values.
        columns: participants.json.
        evaluation: as `reported` gives it.
    """
    made = description["GeneratedBy"][0]
    kinds = {"From": CHANGED_PEOPLE, "Table": ASKED_LIKE_PEOPLE}
    kind = next((text for option, text in kinds.items() if option in made), NOT_PEOPLE)
    whose = kind.format(**made)
    sections = {
        "What they are not": f"{whose}\n{NOT_EITHER}",
        "How they were made": _table(["", ""], _parameters(made)),
        "Columns of participants.tsv": _table(
            ["column", "what it is", "unit"],
            [[f"`{n}`", _meaning(columns.get(n, {})), columns.get(n, {}).get("Units", "")]
             for n in table],
        ),
        "Numbers": _numbers(table, covariates),
        "Files": (
            "`manifest.tsv` lists every image with its seed, what it was asked to be, and the "
            "sha256 of model and file. `python -m brain_ldm.sample out=FOLDER verify=true` holds "
            "the folder against it."
        ),
        "Evaluation": _evaluation(evaluation),
        "Licence": description.get("License") or "None is given: ask whoever shared this set.",
    }  # fmt: skip
    lead = f"{len(table)} T1w brain MRIs that a model drew, as a BIDS derivative."
    if "Part" in made:
        number, count = map(int, made["Part"].split("/"))
        lead += f" They are part {number + 1} of {count} of a larger set."
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())
    return f"# {description['Name']}\n\n{lead}\n\n{text}\n"


def _parameters(made: dict[str, Any]) -> list[list[str]]:
    """What the cohort depends on, for reading."""
    rows = [
        ["Program", f"{made['Name']} {made['Version']}"],
        ["Model", f"sha256 `{made['ModelHash']}`"],
        ["Trained on", _trained_on(made.get("TrainedOn") or {})],
    ]
    if "AutoencoderHash" in made:
        rows.insert(2, ["Autoencoder", f"sha256 `{made['AutoencoderHash']}`"])
    told = ("Name", "Version", "ModelHash", "AutoencoderHash", "TrainedOn", "Part", "Brains")
    return rows + [[key, _words(value)] for key, value in made.items() if key not in told]


def _trained_on(taught: dict[str, Any]) -> str:
    if "cohort_hash" not in taught:
        bundle = f", by the bundle {taught['bundle']}" if "bundle" in taught else ""
        return f"{taught.get('cohort', 'not recorded')}{bundle}"
    extra = taught.get("extra", {}).values()
    own = taught["training_rows"] - sum(other["rows"] for other in extra)
    cohorts = [(own, taught["cohort_hash"])]
    cohorts += [(other["rows"], other["cohort_hash"]) for other in extra]
    return " and ".join(f"{n} brains of the cohort with sha256 `{digest}`" for n, digest in cohorts)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            _words(item) if key == "Name" else f"{key} {_words(item)}"
            for key, item in value.items()
        )
    if isinstance(value, list):
        limits = len(value) == 2 and all(isinstance(item, int | float) for item in value)
        return (" to " if limits else ", ").join(map(str, value))
    return str(value)


def _meaning(column: dict[str, Any]) -> str:
    levels = column.get("Levels")
    text = column.get("Description", "")
    return f"{text} ({', '.join(f'{k}: {v}' for k, v in levels.items())})" if levels else text


def _numbers(table: pd.DataFrame, covariates: pd.DataFrame) -> str:
    splits = table["split"].value_counts()
    counted = ", ".join(f"{splits.get(name, 0)} {name}" for name in ("train", "val", "test"))
    lines = [f"{len(table)} brains; by `split`: {counted}."]
    if covariates.empty:
        return f"{lines[0]} No covariates were asked for."
    rows = []
    for name in covariates:
        values = covariates[name].dropna()
        if pd.api.types.is_numeric_dtype(values):
            spread = [_number(v) for v in (values.min(), values.median(), values.max())]
        else:
            codes = values.value_counts().sort_index()
            spread = [", ".join(f"{code}: {count}" for code, count in codes.items()), "", ""]
        rows.append([f"`{name}`", str(len(values)), *spread])
    lines += [_table(["covariate", "brains", "lowest", "median", "highest"], rows)]
    return "\n\n".join([*lines, f"![How often each value was asked for]({PLOT})"])


def _evaluation(found: dict[str, Any] | None) -> str:
    if found is None:
        return (
            "None was made known to this folder. `python -m brain_ldm.evaluate` makes a report; "
            "the command that drew the set, given again with `report=FOLDER`, puts it here."
        )
    rows = []
    for m in found["measures"]:
        value = _number(m["value"])
        if m["low"] is not None and m["high"] is not None:
            value += f" [{_number(m['low'])}, {_number(m['high'])}]"
        rows.append([m["measure"], value, _number(m["reference"])])
    lines = [
        f"Of {found['brains']} brains, with 95 % intervals. Beside them real brains: measured by "
        "the same networks for what was asked for, other real brains for the rest.",
        _table(["measure", "these brains", "real brains"], rows),
    ]
    of = found["distances"]
    if of is not None:
        limits = "compare with nothing that other features give"
        lines.append(
            f"FID to coverage: features of {of['name']}, sha256 `{of['sha256'][:12]}`, {of['n']} "
            f"brains against {of['n_real']} real ones, on whose numbers FID depends"
            + (f". Those of a stand-in for MedicalNet {limits}." if of["stand_in"] else ".")
        )
    if found["copies"]:
        told = "\n".join(f"- {space}: {text}" for space, text in found["copies"].items())
        lines.append(f"Copies of training brains, by the space that was searched:\n\n{told}")
    return "\n\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
