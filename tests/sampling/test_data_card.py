"""What a synthetic cohort says of itself."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.models import Diffusion, open_model
from brain_ldm.sampling.data_card import card
from tests.bids import bids_errors
from tests.sampling.tiny import files_of, save_tiny_diffusion


@pytest.fixture
def options(workplace):
    model = save_tiny_diffusion(workplace / "tiny")
    return [f"model={model}", "n=6", "sampler.steps=2", "out=drawn", "writers=0"]


@pytest.fixture
def sample(options, run_command):
    def run(*more):
        code, _, err = run_command("sample", *options, *more)
        assert code == 0, err
        return Path("drawn")

    return run


def interval(value, low, high):
    return {"value": value, "low": low, "high": high}


def write_report(root, **changes):
    """Write what docs/metrics.md promises of a cohort, for the cohort in `root`."""
    cohort = open_cohort(root)
    agreement = {"unit": "year", "r": 0.91, "r_low": 0.82, "r_high": 0.95, "mae": 3.7}
    agreement["ceiling"] = {**agreement, "r": 0.97, "mae": 1.5}
    entry = {
        "folder": str(root),
        "n": len(cohort.table),
        "sha256": cohort.content_hash(),
        "generated_by": cohort.description["GeneratedBy"],
        "agreement": {"age": agreement},
        "similarity": {name: interval(0.67, 0.66, 0.68) for name in ("ms_ssim", "gradient_ssim")},
        "realism": {"n": 20, "n_real": 20}
        | {
            name: interval(0.008, 0.007, 0.009)
            for name in ("fid", "kid", "precision", "recall", "density", "coverage")
        },
        "audit": {"embedding": {"verdict": "no sign of copying", "note": None}},
        **changes,
    }
    real = {
        "floor": {"fid": interval(0.0005, 0.0004, 0.0006)},
        "similarity": {"ms_ssim": interval(0.65, 0.64, 0.66)},
    }
    Path("report").mkdir(exist_ok=True)
    kind, other = ("sweeps", "synthetic") if "covariate" in entry else ("synthetic", "sweeps")
    features = {"name": "stand-in: an encoder", "sha256": "e" * 64, "stand_in": True}
    metrics = {"real": real, "features": features, kind: {"drawn": entry}, other: {}}
    Path("report/metrics.json").write_text(json.dumps(metrics))


def test_the_card_tells_what_a_stranger_must_know(sample):
    root = sample("licence=CC-BY-4.0", "guidance=1.5")
    text = (root / "README.md").read_text()
    model = open_model("tiny", Diffusion)
    made = json.loads((root / "dataset_description.json").read_text())
    assert made["License"] == "CC-BY-4.0" and "## Licence\n\nCC-BY-4.0" in text
    for said in (
        "6 T1w brain MRIs that a model drew",
        f"| Model | sha256 `{model.hash}` |",
        f"| Autoencoder | sha256 `{model.autoencoder.hash}` |",
        "16 brains of the cohort with sha256 `cccc",
        "| Sampler | DDIM, steps 2, grid leading, eta 0.0 |",
        "| Guidance | 1.5 |",
        "**Not people.**",
        "**Not measured.**",
        "| `age` | Age | year |",
        "| `sex` | Sex (F: female, M: male) |  |",
        "None was made known to this folder.",
        "![How often each value was asked for](figures/covariates.png)",
    ):
        assert said in text, said
    table = pd.read_csv(root / "participants.tsv", sep="\t")
    counts = table["sex"].value_counts()
    assert f"| `sex` | 6 | F: {counts['F']}, M: {counts['M']} |" in text
    assert f"| `age` | 6 | {table['age'].min():.3g} | {table['age'].median():.3g} |" in text
    with Image.open(root / "figures/covariates.png") as picture:
        assert picture.width > 700  # a panel for sex and one for age
    assert bids_errors(root) == []


def test_no_licence_is_said_and_one_may_come_later(sample):
    root = sample()
    before = files_of(root)
    assert "None is given" in (root / "README.md").read_text()
    sample()
    assert files_of(root) == before
    sample("licence=CC0-1.0")
    assert json.loads((root / "dataset_description.json").read_text())["License"] == "CC0-1.0"
    changed = {name for name, content in files_of(root).items() if before[name] != content}
    assert changed == {"README.md", "dataset_description.json"}
    sample()
    assert "## Licence\n\nCC0-1.0" in (root / "README.md").read_text()


def test_a_report_comes_into_the_card_and_stays(sample, one_line, options):
    root = sample()
    write_report(root)
    before = files_of(root)
    sample("report=report")
    text = (root / "README.md").read_text()
    for said in (
        "| age: r, requested and measured | 0.91 [0.82, 0.95] | 0.97 |",
        "| age: mean absolute error, year | 3.7 | 1.5 |",
        "| FID | 0.008 [0.007, 0.009] | 0.0005 |",
        "| MS-SSIM of pairs | 0.67 [0.66, 0.68] | 0.65 |",
        "features of stand-in: an encoder, sha256 `eeeeeeeeeeee`, 20 brains against 20 real ones",
        "compare with nothing that other features give",
        "- embedding: no sign of copying",
    ):
        assert said in text, said
    changed = {name for name, content in files_of(root).items() if before.get(name) != content}
    assert changed == {"README.md", "evaluation.json"}
    assert bids_errors(root) == []
    sample("licence=CC0-1.0")
    assert "- embedding: no sign of copying" in (root / "README.md").read_text()


def test_a_report_of_a_sweep(sample):
    root = sample("sweep=age")
    found = {"unit": "year", "r": 0.9, "r_low": None, "r_high": None, "mae": 4, "ceiling": None}
    write_report(root, covariate="age", agreement=found, similarity=None, realism=None, audit=None)
    sample("sweep=age", "report=report")
    assert "| age: r, requested and measured | 0.9 | – |" in (root / "README.md").read_text()


def test_a_report_about_something_else_is_refused(sample, one_line, options):
    root = sample()
    assert "no metrics.json there" in one_line("sample", *options, "report=nowhere")
    write_report(root, generated_by=[{"Name": "another"}])
    assert "is not about drawn" in one_line("sample", *options, "report=report")
    write_report(root, sha256="0" * 64)
    assert "drawn: has changed since that report" in one_line("sample", *options, "report=report")
    assert not (root / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"From": "cohorts/clinic"}, "a brain of the cohort cohorts/clinic"),
        ({"Table": "clinic.tsv"}, "those\n  of a row of clinic.tsv"),
    ],
)
def test_what_comes_of_people_is_not_called_nobodys(asked, said):
    made = {"Name": "brain_ldm sample", "Version": "1", "ModelHash": "a", **asked}
    table = pd.DataFrame({"participant_id": ["sub-1"], "split": ["test"], "source_id": ["sub-9"]})
    text = card({"Name": "Set", "GeneratedBy": [made]}, table, table[[]], {}, None)
    assert said in text and "Not people" not in text


def test_the_card_tells_what_the_model_learnt_from():
    made = {"Name": "brain_ldm sample", "Version": "1", "ModelHash": "a"}
    table = pd.DataFrame({"participant_id": ["sub-1"], "split": ["test"]})
    more = {"cohorts/more": {"rows": 3, "cohort_hash": "c"}}
    ours = {"cohort_hash": "b", "training_rows": 10, "extra": more}
    published = {"cohort": "UK Biobank", "bundle": "the_bundle"}
    for taught, said in (
        (ours, "| 7 brains of the cohort with sha256 `b` and 3 brains of the cohort with"),
        (published, "| UK Biobank, by the bundle the_bundle |"),
        ({}, "| Trained on | not recorded |"),
    ):
        description = {"Name": "Set", "GeneratedBy": [made | {"TrainedOn": taught}]}
        assert said in card(description, table, table[[]], {}, None)


def test_a_cohort_without_covariates_has_a_card_too(sample):
    root = sample("covariates=[]")
    assert "No covariates were asked for." in (root / "README.md").read_text()
    assert not (root / "figures").exists()
    assert bids_errors(root) == []


def test_a_report_is_refused_while_a_part_is_missing(sample, options, one_line, workplace):
    root = sample("folder_size=2")
    write_report(root / "part-000")
    shutil.rmtree(root / "part-001")
    line = one_line("sample", *options, "folder_size=2", "report=report")
    assert "is not finished; draw it first" in line
    assert not (root / "part-001").exists()
