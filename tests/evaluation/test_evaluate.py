"""A whole small evaluation with networks that read what the images carry in their first voxels."""

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from brain_ldm.cohorts.cohort import Cohort, open_cohort
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.errors import InputError
from brain_ldm.evaluation.config import EvaluateConfig
from brain_ldm.evaluation.evaluate import evaluate, evaluate_cohorts
from brain_ldm.evaluation.measure import Instruments
from brain_ldm.evaluation.report import print_summary

GRID = VoxelGrid((12, 14, 12), np.diag([12.0, 12.0, 12.0, 1.0]))
FULL = {"age": 100.0, "ventricular_volume": 2e5, "brain_volume": 2e6}
TIMES = EvaluateConfig(pairs=6, bootstrap=200, permutations=200, batch_size=4, shown=2)


@pytest.fixture(autouse=True)
def small_figures(monkeypatch):
    monkeypatch.setattr("brain_ldm.evaluation.figures.DOTS_PER_INCH", 40)


class Stub:
    """What a model has besides its network."""

    grid = GRID
    config = SimpleNamespace(trained_on={"cohort": "cohorts/other", "steps": 7})

    def __init__(self, letter: str):
        self.hash = letter * 64


class StubSegmenter(Stub):
    def volumes(self, images):
        return {
            "ventricular_volume": images[:, 0, 1, 0, 0] * FULL["ventricular_volume"],
            "brain_volume": images[:, 0, 2, 0, 0] * FULL["brain_volume"],
        }


class StubBrainAge(Stub):
    def predict(self, images):
        return images[:, 0, 0, 0, 0] * FULL["age"]


class StubAutoencoder(Stub):
    def reconstruct(self, images):
        return (images + 0.1).clamp(0, 1)


@pytest.fixture
def instruments() -> Instruments:
    return Instruments(StubSegmenter("a"), StubBrainAge("b"), StubAutoencoder("c"))


def table(n: int, seed: int = 0, **columns) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = {
        "participant_id": [f"sub-{i:03d}" for i in range(n)],
        "age": rng.uniform(45, 80, n).round(1),
        "sex": ["F" if i % 2 else "M" for i in range(n)],
        "ventricular_volume": rng.uniform(1e4, 8e4, n).round(),
        "brain_volume": rng.uniform(1e6, 1.4e6, n).round(),
        "split": "test",
    }
    return pd.DataFrame(rows | columns)


def write(
    root: Path, rows: pd.DataFrame, images_of: pd.DataFrame | None = None, sweep: str | None = None
) -> Cohort:
    """A cohort whose images carry the covariates of `images_of` (by default, their own)."""
    made_by = {"Name": "test", "AutoencoderHash": "c" * 64} | ({"Sweep": sweep} if sweep else {})
    extra = {c: {"Description": c} for c in ("source_id", "seed") if c in rows}
    writer = CohortWriter(root, root.name, made_by, GRID, synthetic=True, extra_columns=extra)
    carried = rows if images_of is None else images_of
    for i, row in enumerate(rows.to_dict("records")):
        image = 0.3 + 0.4 * np.random.default_rng(i).random(GRID.shape, np.float32)
        image[:3, 0, 0] = [carried[name].iloc[i] / FULL[name] for name in FULL]
        clean = {k: v for k, v in row.items() if not (isinstance(v, float) and np.isnan(v))}
        writer.add(clean, image)
    writer.finish()
    return open_cohort(root)


class Links(HTMLParser):
    """Every src and href of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href")]


def test_a_whole_report(tmp_path, instruments, capsys):
    real = write(tmp_path / "phantom", table(10))
    asked = table(10, source_id=[f"sub-{i:03d}" for i in reversed(range(10))])
    rows = asked.assign(age=asked.age.where(asked.index > 1))
    synthetic = write(tmp_path / "made up #1", rows, images_of=asked)
    varied = table(6, seed=[3, 4] * 3).assign(ventricular_volume=np.linspace(1e4, 8e4, 6), age=60.0)
    sweep = write(tmp_path / "sweep", varied, sweep="ventricular_volume")
    by_sex = write(tmp_path / "sexes", table(2).assign(sex=["M", "F"]), sweep="sex")
    out = tmp_path / "reports" / "made"
    sweeps = {"sweep": sweep, "sexes": by_sex}

    metrics = evaluate_cohorts(TIMES, real, {"made up #1": synthetic}, sweeps, instruments, out)

    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics) == {
        *("schema_version", "settings", "grid", "models", "real", "synthetic", "sweeps")
    }
    assert metrics["models"]["brain_age"] == {
        "folder": "models/brain_age_demo",
        "sha256": "b" * 64,
        "trained_on": {"cohort": "cohorts/other", "steps": 7},
    }
    identity = {"folder", "n", "sha256", "generated_by"}
    assert set(metrics["real"]) == identity | {
        *("agreement", "reconstruction", "ms_ssim", "ms_ssim_reconstructed")
    }
    made = metrics["synthetic"]["made up #1"]
    assert set(made) == identity | {
        *("agreement", "ms_ssim", "montage", "scatter", "montage_matched")
    }
    assert made["montage_matched"] is True
    age = made["agreement"]["age"]
    assert set(age) == {
        *("unit", "n", "left_out", "r", "r_low", "r_high", "mae", "slope", "note"),
        *("floor", "ceiling"),
    }
    assert (age["n"], age["left_out"], age["unit"]) == (8, 2, "year")
    for found in made["agreement"].values():
        assert found["r"] > 0.99
        assert found["ceiling"]["r"] > 0.99
        assert found["ceiling"]["n"] == 10
        assert found["floor"]["mean_abs_r"] < 0.5
    assert made["agreement"]["ventricular_volume"]["mae"] < 60  # images are stored in 4096 steps
    assert metrics["sweeps"]["sweep"]["agreement"]["slope"] == pytest.approx(1, abs=0.01)
    assert metrics["sweeps"]["sexes"]["agreement"] is None
    assert metrics["real"]["reconstruction"]["psnr_db"]["mean"] == pytest.approx(20, abs=0.1)
    assert made["ms_ssim"]["n"] == 6
    assert (made["ms_ssim"]["window"], made["ms_ssim"]["scales"]) == (7, 1)

    measured = pd.read_csv(out / "measurements.tsv", sep="\t", na_values="n/a")
    assert measured.role.value_counts().to_dict() == {"real": 10, "synthetic": 10, "sweep": 8}
    assert measured.psnr.notna().sum() == 10
    ours = measured[measured.role == "synthetic"]
    assert ours.measured_age.to_numpy() == pytest.approx(asked.age.to_numpy(), abs=0.03)

    links = Links((out / "index.html").read_text()).found
    assert len(links) == 6
    for link in links:
        assert (out / link.replace("%20", " ").replace("%23", "#")).stat().st_size > 500
    assert {p.name for p in out.parent.iterdir()} == {"made"}
    assert {p.name for p in out.iterdir()} == {
        *("figures", "index.html", "metrics.json", "measurements.tsv")
    }

    print_summary(metrics, out)
    shown = capsys.readouterr().out
    assert "Ventricular volume" in shown
    assert str(out / "index.html") in shown


def test_shuffled_requests_fall_to_chance(tmp_path, instruments):
    real = write(tmp_path / "real", table(40))
    rows = table(40)
    shuffled = rows.sample(frac=1, random_state=3).assign(participant_id=rows.participant_id.values)
    synthetic = write(tmp_path / "synthetic", shuffled, images_of=rows)
    metrics = evaluate_cohorts(TIMES, real, {"s": synthetic}, {}, instruments, tmp_path / "out")
    for found in metrics["synthetic"]["s"]["agreement"].values():
        assert abs(found["r"]) <= found["floor"]["abs_r_high"] < 0.45
        assert found["ceiling"]["r"] > 0.99


def test_requests_for_nothing_are_reported_as_such(tmp_path, instruments):
    real = write(tmp_path / "real", table(4))
    nothing = table(4, age=np.nan, brain_volume=np.nan, sex=None)
    synthetic = write(tmp_path / "synthetic", nothing, images_of=table(4))
    out = tmp_path / "out"
    metrics = evaluate_cohorts(TIMES, real, {"s": synthetic}, {}, instruments, out)
    found = metrics["synthetic"]["s"]["agreement"]
    assert (found["age"]["r"], found["age"]["floor"], found["age"]["left_out"]) == (None, None, 4)
    assert found["age"]["note"] in (out / "index.html").read_text()
    assert found["ventricular_volume"]["r"] > 0.99
    assert metrics["synthetic"]["s"]["montage_matched"] is False
    print_summary(metrics, out)


def test_one_brain_a_cohort_still_gives_a_report(tmp_path, instruments):
    real, synthetic = (write(tmp_path / name, table(1)) for name in ("real", "synthetic"))
    metrics = evaluate_cohorts(TIMES, real, {"s": synthetic}, {}, instruments, tmp_path / "out")
    assert metrics["synthetic"]["s"]["ms_ssim"]["mean"] is None
    assert metrics["real"]["reconstruction"]["psnr_db"]["sd"] is None
    assert "only 1 row has" in metrics["real"]["agreement"]["age"]["note"]
    assert (tmp_path / "out" / "index.html").exists()
    print_summary(metrics, tmp_path / "out")


def test_only_the_chosen_split_of_the_real_cohort_is_used(tmp_path, instruments):
    real = write(tmp_path / "real", table(8, split=["train", "test"] * 4))
    synthetic = write(tmp_path / "synthetic", table(3, split="train"))
    metrics = evaluate_cohorts(TIMES, real, {"s": synthetic}, {}, instruments, tmp_path / "out")
    assert metrics["real"]["n"] == 4
    assert metrics["synthetic"]["s"]["n"] == 3


def test_an_interrupted_run_leaves_the_old_report_and_nothing_else(tmp_path, instruments):
    real = write(tmp_path / "real", table(4))
    good, bad = (write(tmp_path / name, table(4)) for name in ("good", "bad"))
    path = bad.image_path("sub-003")
    path.write_bytes(path.read_bytes()[:-200])
    out = tmp_path / "reports" / "r"
    with pytest.raises(InputError, match="sub-003"):
        evaluate_cohorts(TIMES, real, {"bad": bad}, {}, instruments, out)
    assert list(out.parent.iterdir()) == []
    evaluate_cohorts(TIMES, real, {"good": good}, {}, instruments, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="sub-003"):
        evaluate_cohorts(TIMES, real, {"bad": bad}, {}, instruments, out)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert [p.name for p in out.parent.iterdir()] == ["r"]


def test_a_second_report_replaces_the_first(tmp_path, instruments):
    real, a, b = (write(tmp_path / name, table(4)) for name in ("real", "a", "b"))
    out = tmp_path / "out"
    evaluate_cohorts(TIMES, real, {"a": a}, {}, instruments, out)
    evaluate_cohorts(TIMES, real, {"b": b}, {}, instruments, out)
    assert {p.name for p in (out / "figures").iterdir()} == {"montage_b.png", "scatter_b.png"}


def test_the_page_says_what_the_networks_were_trained_on(tmp_path, instruments, monkeypatch):
    real = write(tmp_path / "real", table(6, split=["train", "test"] * 3))
    out = tmp_path / "out"

    def page(split: str, trained_on: dict) -> str:
        monkeypatch.setattr(Stub, "config", SimpleNamespace(trained_on=trained_on))
        config = EvaluateConfig(split=split, pairs=2, bootstrap=50, permutations=50, shown=1)
        evaluate_cohorts(config, real, {"s": real}, {}, instruments, out)
        return (out / "index.html").read_text()

    same = {"cohort_hash": real.content_hash(), "steps": 7}
    assert "so none of its test rows (cohort_hash" in page("test", same)
    assert "which flatters its measurements" in page("train", same)
    assert "another cohort than the real one" in page("test", {"cohort_hash": "0" * 64})
    assert "not recorded" in page("test", {})
    assert "This is the autoencoder that drew s" in page("test", {})
    instruments.autoencoder.hash = "d" * 64
    assert "None of the synthetic cohorts" in page("test", {})


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batches_do_not_change_what_is_measured(tmp_path, instruments, batch_size):
    real = write(tmp_path / "real", table(5))
    config = EvaluateConfig(pairs=4, bootstrap=50, permutations=50, batch_size=batch_size)
    evaluate_cohorts(config, real, {"s": real}, {}, instruments, tmp_path / "out")
    measured = pd.read_csv(tmp_path / "out/measurements.tsv", sep="\t")
    assert measured.measured_age.to_numpy() == pytest.approx(measured.age.to_numpy(), abs=0.03)


def test_what_does_not_fit_together_is_refused_in_one_line(tmp_path, instruments):
    real = write(tmp_path / "real", table(3))
    sweep = write(tmp_path / "sweep", table(3, seed=1), sweep="age")
    gap = write(
        tmp_path / "gap", table(3, age=[50.0, np.nan, 60.0]), images_of=table(3), sweep="age"
    )
    training = write(tmp_path / "training", table(3, split="train"))
    shifted = VoxelGrid(GRID.shape, GRID.affine + np.eye(4, k=3))
    other = Cohort(real.root, real.table, shifted, real.description)
    foreign = StubBrainAge("b")
    foreign.grid = shifted

    def refused(config=TIMES, real=real, synthetic=real, sweeps=None, models=instruments):
        out = tmp_path / "out"
        with pytest.raises(InputError) as error:
            evaluate_cohorts(config, real, {"s": synthetic}, sweeps or {}, models, out)
        assert "\n" not in str(error.value)
        assert not out.exists()
        return str(error.value)

    assert "no row has split test" in refused(real=training)
    assert "split is 'tset'" in refused(EvaluateConfig(split="tset"))
    assert "pairs is 0" in refused(EvaluateConfig(pairs=0))
    assert "give cohorts of one grid" in refused(synthetic=other)
    assert "give cohorts of one grid" in refused(sweeps={"s": other})
    odd = Instruments(instruments.segmenter, foreign, instruments.autoencoder)
    assert "brain_age (models/brain_age_demo) works on" in refused(models=odd)
    assert "a sweep of age; give it as sweeps" in refused(synthetic=sweep)
    assert "not a sweep" in refused(sweeps={"s": real})
    assert "a sweep needs age in every row" in refused(sweeps={"s": gap})


@pytest.mark.parametrize("synthetic", [3, None, {"a": "b"}, ["a", 3], "", []])
def test_synthetic_of_a_wrong_type_is_refused(synthetic):
    with pytest.raises(InputError, match="synthetic"):
        EvaluateConfig(synthetic=synthetic)


def test_missing_folders_are_named(tmp_path):
    config = EvaluateConfig(synthetic="nowhere", segmenter=str(tmp_path / "no_model"))
    config.out = str(tmp_path / "out")
    with pytest.raises(InputError, match="no_model"):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_no_place_for_a_report(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="choose another out"):
        evaluate(EvaluateConfig(synthetic="a", out=str(tmp_path)))
    with pytest.raises(InputError, match="choose another out"):
        evaluate(EvaluateConfig(synthetic="a", out=str(tmp_path / "thesis.txt")))


def test_opened_by_folder_names_alone(tmp_path, instruments, monkeypatch, capsys):
    for folder in ("a/made", "b/made", "real"):
        write(tmp_path / folder, table(3))
    opened = {
        "seg": instruments.segmenter,
        "age": instruments.brain_age,
        "ae": StubAutoencoder("c"),
    }
    for model in opened.values():
        model.to = lambda device, model=model: model
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("brain_ldm.evaluation.evaluate.open_model", lambda name, kind: opened[name])
    monkeypatch.chdir(tmp_path)
    config = EvaluateConfig(real="real", synthetic=["a/made", "b/made"], pairs=2, bootstrap=50)
    config.segmenter, config.brain_age, config.autoencoder = "seg", "age", "ae"
    evaluate(config)
    metrics = json.loads(Path("reports/made/metrics.json").read_text())
    assert list(metrics["synthetic"]) == ["a-made", "b-made"]
    assert "reports/made/index.html" in capsys.readouterr().out
    config.synthetic = ["a/made", "a/made/"]
    with pytest.raises(InputError, match="given twice"):
        evaluate(config)
