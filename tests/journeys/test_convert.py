"""Whole conversions: the published bundle in, brains out; a model in, a bundle that MONAI runs."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from monai.bundle import ConfigParser

from brain_ldm.cohorts.cohort import open_cohort
from tests.conversion.bundles import write_bundle


@pytest.fixture
def published(workplace):
    return write_bundle(workplace / "bundle")


def succeed(run, name, *overrides):
    code, out, err = run(name, *overrides)
    assert code == 0, err
    return out


def brains(folder):
    """The table of a cohort and its volumes, by participant_id."""
    cohort = open_cohort(folder)
    table = pd.read_csv(cohort.root / "participants.tsv", sep="\t")
    return table, {pid: cohort.read(pid) for pid in table["participant_id"]}


def test_from_the_published_bundle_to_brains_to_a_bundle(run_command, published, monkeypatch):
    convert = ["convert", "source=bundle", "out=models/published", "to=model"]
    assert "diffusion model" in succeed(run_command, *convert)
    draw = ["n=2", "sampler.steps=3", "precision=32-true"]
    succeed(run_command, "sample", "model=models/published", "out=cohorts/one", *draw)
    table, volumes = brains("cohorts/one")
    assert table["age"].between(44, 82).all() and set(table["sex"]) <= {"F", "M"}

    # By way of a bundle and of a repository the same brains come out.
    for number, to in enumerate(("bundle", "hub", "model")):
        source = ("models/published", "by_bundle", "by_hub")[number]
        out = ("by_bundle", "by_hub", "models/again")[number]
        succeed(run_command, "convert", f"source={source}", f"out={out}", f"to={to}")
    succeed(run_command, "sample", "model=models/again", "out=cohorts/two", *draw)
    _, again = brains("cohorts/two")
    assert all(np.array_equal(volume, again[pid]) for pid, volume in volumes.items())

    # A row's seed and covariates give its brain in MONAI too.
    row = table.iloc[1]
    asked = {name: row[name] for name in ("sex", "age", "ventricular_volume", "brain_volume")}
    parser = ConfigParser()
    parser.read_config("by_bundle/configs/inference.json")
    parser.update({"bundle_root": "by_bundle", "steps": 3, "seed": int(row["seed"])})
    parser.update({f"covariates#{name}": value for name, value in asked.items()})
    monkeypatch.syspath_prepend("by_bundle")
    for name in ("scripts.sampler", "scripts"):  # of another test's bundle
        monkeypatch.delitem(sys.modules, name, raising=False)
    volume = parser.get_parsed_content("volume")[0].numpy()
    assert np.abs(volume - volumes[row["participant_id"]]).max() <= 0.5 / 4096 + 1e-5


def test_mistakes_are_one_line_each_and_write_nothing(one_line, published, workplace):
    def line(**options):
        given = {"source": "bundle", "out": "out", "to": "model"} | options
        return one_line("convert", *(f"{k}={v}" for k, v in given.items() if v is not None))

    assert "'to' must be given" in line(to=None)
    assert "'onnx', expected one of [model, bundle, hub]" in line(to="onnx")
    assert "nowhere: no such folder" in line(source="nowhere")
    (workplace / "empty").mkdir()
    assert "neither a MONAI bundle" in line(source="empty")
    assert "out=bundle: is there already" in line(out="bundle")
    below_a_file = published / "configs" / "inference.json" / "out"
    assert "inference.json is no folder" in line(out=below_a_file)
    assert "licence is for to=bundle" in line(licence="mit")
    assert "SPDX" in line(to="bundle", licence="'my own terms'")
    inference = published / "configs" / "inference.json"
    data = json.loads(inference.read_text())
    data["diffusion_def"]["channels"] = [8, 16, 32]
    inference.write_text(json.dumps(data))
    assert "model.pt: 'down_blocks" in line()
    inference.write_text("{")
    assert "inference.json: not readable JSON" in line()
    assert {path.name for path in workplace.iterdir()} == {"bundle", "empty"}


def test_only_what_draws_brains_becomes_a_bundle(one_line, tiny_models, workplace):
    source = f"source={tiny_models['segmenter']}"
    line = one_line("convert", source, "out=out", "to=bundle")
    assert "a model of kind 'segmenter', not 'diffusion' or 'generator'" in line


@pytest.mark.parametrize("kind", ["segmenter", "autoencoder"])
def test_any_model_becomes_a_repository(run_command, tiny_models, workplace, kind):
    succeed(run_command, "convert", f"source={tiny_models[kind]}", "out=out", "to=hub")
    text = (workplace / "out" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: brain_ldm\n") and f"# {kind}" in text
