"""A whole small evaluation with networks that read what the images carry in their first voxels."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from brain_ldm.cohorts.cohort import Cohort, open_cohort
from brain_ldm.cohorts.grid import VoxelGrid, paper_grid
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.errors import InputError
from brain_ldm.evaluation import store
from brain_ldm.evaluation.config import EvaluateConfig
from brain_ldm.evaluation.evaluate import _halves, evaluate, evaluate_cohorts
from brain_ldm.evaluation.features import Extractor
from brain_ldm.evaluation.inputs import Inputs, asked_like
from brain_ldm.evaluation.instruments import Instruments, open_instruments
from brain_ldm.evaluation.measure import Measured
from brain_ldm.evaluation.report import print_summary
from brain_ldm.evaluation.store import stored
from brain_ldm.models import GridConfig, SavedSegmenter, Segmenter, save_model
from brain_ldm.networks.config import SegmenterConfig
from brain_ldm.precision import Precision
from brain_ldm.studies.study import read_off

GRID = VoxelGrid((14, 16, 14), np.diag([12.0, 12.0, 12.0, 1.0]))
FULL = {"age": 100.0, "ventricular_volume": 2e5, "brain_volume": 2e6}
TIMES = EvaluateConfig(
    pairs=6, bootstrap=200, resamples=10, permutations=200, batch_size=4, shown=2
)


@pytest.fixture(autouse=True)
def small_figures_and_a_cache_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr("brain_ldm.evaluation.figures.DOTS_PER_INCH", 40)
    monkeypatch.chdir(tmp_path)


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
    def encode(self, images):
        return torch.nn.functional.avg_pool3d(images, 2), None

    def reconstruct(self, images):
        return (images + 0.1).clamp(0, 1)


class StubEmbedding(Stub):
    def embed(self, images):
        return images[:, 0, 4:8, 4:8, 4].flatten(1)


def features(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool3d(images, 6).flatten(1)


@pytest.fixture
def instruments() -> Instruments:
    return Instruments(
        StubSegmenter("a"),
        StubBrainAge("b"),
        StubAutoencoder("c"),
        StubEmbedding("d"),
        Extractor("stand-in: a stub", "e" * 64, True, features),
    )


def run(config, real, synthetic, sweeps, instruments, out) -> dict:
    titles = {name: name for name in synthetic}
    return evaluate_cohorts(config, Inputs(real, synthetic, titles, sweeps), instruments, out)


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
    asked = table(10).iloc[::-1].reset_index(drop=True)
    asked = asked.assign(source_id=asked["participant_id"], participant_id=table(10).participant_id)
    rows = asked.assign(age=asked.age.where(asked.index > 1))
    synthetic = write(tmp_path / "made up #1", rows, images_of=asked)
    varied = table(6, seed=[3, 4] * 3).assign(ventricular_volume=np.linspace(1e4, 8e4, 6), age=60.0)
    sweep = write(tmp_path / "sweep", varied, sweep="ventricular_volume")
    by_sex = write(tmp_path / "sexes", table(2).assign(sex=["M", "F"]), sweep="sex")
    out = tmp_path / "reports" / "made"
    sweeps = {"sweep": sweep, "sexes": by_sex}

    metrics = run(TIMES, real, {"made up #1": synthetic}, sweeps, instruments, out)

    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics) == {
        *("schema_version", "settings", "grid", "models", "features", "real", "synthetic"),
        *("sweeps", "utility", "table", "notes", "figures", "viewers"),
    }
    assert metrics["features"] == {"name": "stand-in: a stub", "sha256": "e" * 64, "stand_in": True}
    assert metrics["models"]["brain_age"] == {
        "folder": "models/brain_age_demo",
        "sha256": "b" * 64,
        "trained_on": {"cohort": "cohorts/other", "steps": 7},
    }
    identity = {"folder", "n", "sha256", "generated_by"}
    assert set(metrics["real"]) == identity | {
        *("agreement", "sex", "similarity", "floor", "reconstruction")
    }
    made = metrics["synthetic"]["made up #1"]
    assert set(made) == identity | {
        *("title", "agreement", "sex", "similarity", "realism", "audit", "figures"),
        "montage_matched",
    }
    assert (made["realism"]["n"], made["realism"]["n_real"]) == (5, 5)
    assert made["realism"]["fid"]["low"] <= made["realism"]["fid"]["value"]
    assert "of 0 people" in made["audit"]["embedding"]["note"]
    assert list(metrics["table"]) == ["made up #1", "Real"]
    assert metrics["table"]["Real"]["fid"]["mean"] == metrics["real"]["floor"]["fid"]["value"]
    assert metrics["table"]["Real"]["ms_ssim"]["paper"] == 0.6536
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
    assert metrics["sweeps"]["sweep"]["response"]["slope"] == pytest.approx(1, abs=0.01)
    assert metrics["sweeps"]["sweep"]["response"]["monotonicity"] == pytest.approx(1)
    assert metrics["sweeps"]["sexes"]["agreement"] is None
    assert metrics["sweeps"]["sexes"]["response"] is None
    assert metrics["real"]["reconstruction"]["psnr_db"]["mean"] == pytest.approx(20, abs=0.1)
    alike = made["similarity"]["ms_ssim"]
    assert alike["n"] == 6
    assert (alike["window"], alike["scales"]) == (7, 2)
    assert (
        made["similarity"]["gradient_ssim"]["low"] <= made["similarity"]["gradient_ssim"]["value"]
    )

    measured = pd.read_csv(out / "measurements.tsv", sep="\t", na_values="n/a")
    assert measured.role.value_counts().to_dict() == {"real": 10, "synthetic": 10, "sweep": 8}
    assert measured.psnr.notna().sum() == 10
    ours = measured[measured.role == "synthetic"]
    assert ours.measured_age.to_numpy() == pytest.approx(asked.age.to_numpy(), abs=0.03)

    links = Links((out / "index.html").read_text()).found
    assert len(links) == 10  # six figures, two viewers, two tables
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
    metrics = run(TIMES, real, {"s": synthetic}, {}, instruments, tmp_path / "out")
    for found in metrics["synthetic"]["s"]["agreement"].values():
        assert abs(found["r"]) <= found["floor"]["abs_r_high"] < 0.45
        assert found["ceiling"]["r"] > 0.99


def test_requests_for_nothing_are_reported_as_such(tmp_path, instruments):
    real = write(tmp_path / "real", table(4))
    nothing = table(4, age=np.nan, brain_volume=np.nan, sex=None)
    synthetic = write(tmp_path / "synthetic", nothing, images_of=table(4))
    out = tmp_path / "out"
    metrics = run(TIMES, real, {"s": synthetic}, {}, instruments, out)
    found = metrics["synthetic"]["s"]["agreement"]
    assert (found["age"]["r"], found["age"]["floor"], found["age"]["left_out"]) == (None, None, 4)
    assert found["age"]["note"] in (out / "index.html").read_text()
    assert found["ventricular_volume"]["r"] > 0.99
    assert metrics["synthetic"]["s"]["montage_matched"] is False
    print_summary(metrics, out)


def test_one_brain_a_cohort_still_gives_a_report(tmp_path, instruments):
    real, synthetic = (write(tmp_path / name, table(1)) for name in ("real", "synthetic"))
    metrics = run(TIMES, real, {"s": synthetic}, {}, instruments, tmp_path / "out")
    assert metrics["synthetic"]["s"]["similarity"]["ms_ssim"]["value"] is None
    assert metrics["real"]["reconstruction"]["psnr_db"]["sd"] is None
    assert "only 1 row has" in metrics["real"]["agreement"]["age"]["note"]
    assert (tmp_path / "out" / "index.html").exists()
    print_summary(metrics, tmp_path / "out")


def test_only_the_chosen_split_of_the_real_cohort_is_used(tmp_path, instruments):
    real = write(tmp_path / "real", table(8, split=["train", "test"] * 4))
    synthetic = write(tmp_path / "synthetic", table(3, split="train"))
    metrics = run(TIMES, real, {"s": synthetic}, {}, instruments, tmp_path / "out")
    assert metrics["real"]["n"] == 4
    assert metrics["synthetic"]["s"]["n"] == 3


def test_an_interrupted_run_leaves_the_old_report_and_nothing_else(tmp_path, instruments):
    real = write(tmp_path / "real", table(4))
    good, bad = (write(tmp_path / name, table(4)) for name in ("good", "bad"))
    path = bad.image_path("sub-003")
    path.write_bytes(path.read_bytes()[:-200])
    out = tmp_path / "reports" / "r"
    with pytest.raises(InputError, match="sub-003"):
        run(TIMES, real, {"bad": bad}, {}, instruments, out)
    assert not out.parent.exists()
    run(TIMES, real, {"good": good}, {}, instruments, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="sub-003"):
        run(TIMES, real, {"bad": bad}, {}, instruments, out)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert [p.name for p in out.parent.iterdir()] == ["r"]


def test_a_second_report_replaces_the_first(tmp_path, instruments):
    real, a, b = (write(tmp_path / name, table(4)) for name in ("real", "a", "b"))
    out = tmp_path / "out"
    run(TIMES, real, {"a": a}, {}, instruments, out)
    run(TIMES, real, {"b": b}, {}, instruments, out)
    shown = {p.name for p in (out / "figures").iterdir()}
    assert {"montage_b.png", "scatter_b.png"} < shown
    assert "montage_a.png" not in shown


def test_the_page_says_what_the_networks_were_trained_on(tmp_path, instruments, monkeypatch):
    real = write(tmp_path / "real", table(6, split=["train", "test"] * 3))
    out = tmp_path / "out"

    def page(split: str, trained_on: dict) -> str:
        monkeypatch.setattr(Stub, "config", SimpleNamespace(trained_on=trained_on))
        config = EvaluateConfig(
            split=split, pairs=2, bootstrap=50, resamples=2, permutations=50, shown=1
        )
        run(config, real, {"s": real}, {}, instruments, out)
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
    config = EvaluateConfig(
        pairs=4, bootstrap=50, resamples=2, permutations=50, batch_size=batch_size
    )
    run(config, real, {"s": real}, {}, instruments, tmp_path / "out")
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
            run(config, real, {"s": synthetic}, sweeps or {}, models, out)
        assert "\n" not in str(error.value)
        assert not out.exists()
        return str(error.value)

    assert "no row has split test" in refused(real=training)
    assert "split is 'tset'" in refused(EvaluateConfig(split="tset"))
    assert "pairs is 0" in refused(EvaluateConfig(pairs=0))
    assert "give cohorts of one grid" in refused(synthetic=other)
    assert "give cohorts of one grid" in refused(sweeps={"s": other})
    odd = replace(instruments, brain_age=foreign)
    assert "brain_age (models/brain_age_demo) works on" in refused(models=odd)
    assert "a sweep of age; give it as sweeps" in refused(synthetic=sweep)
    assert "rename the folder" in refused(sweeps={"Real": sweep})
    small = replace(real, grid=VoxelGrid((12, 14, 12), GRID.affine))
    assert "4-G-R-SSIM needs at least 13" in refused(real=small)
    assert "not a sweep" in refused(sweeps={"s": real})
    assert "a sweep needs age in every row" in refused(sweeps={"s": gap})


@pytest.mark.parametrize(
    "synthetic", [3, None, {}, {"a": 3}, {"Real": "a"}, {"a": []}, ["a", 3], "", []]
)
def test_synthetic_of_a_wrong_type_is_refused(synthetic):
    with pytest.raises(InputError, match="synthetic"):
        EvaluateConfig(synthetic=synthetic)


def test_missing_folders_are_named(tmp_path):
    for name in ("real", "made"):
        write(tmp_path / name, table(3))
    config = EvaluateConfig(real="real", synthetic="nowhere", segmenter="no_model", out="out")
    with pytest.raises(InputError, match="nowhere: no such cohort"):
        evaluate(config)
    config.synthetic = {None: ["made"]}
    with pytest.raises(InputError, match=r"segmenter: no_model: no model.*segmenter=null does"):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_no_place_for_a_report(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="choose another out"):
        evaluate(EvaluateConfig(synthetic="a", out=str(tmp_path)))
    with pytest.raises(InputError, match="choose another out"):
        evaluate(EvaluateConfig(synthetic="a", out=str(tmp_path / "thesis.txt")))


def test_rows_of_the_table_by_name_hold_several_cohorts(tmp_path, instruments, monkeypatch, capsys):
    for number, folder in enumerate(("a/made", "b/made", "c", "real")):
        write(tmp_path / folder, table(12, seed=number))
    monkeypatch.setattr(
        "brain_ldm.evaluation.evaluate.open_instruments", lambda config: instruments
    )
    config = EvaluateConfig(
        real="real",
        synthetic={"LDM": ["a/made", "b/made"], "LSGAN": "c"},
        pairs=4,
        bootstrap=50,
        resamples=5,
        shown=2,
    )
    evaluate(config)
    metrics = json.loads(Path("reports/made/metrics.json").read_text())
    assert list(metrics["synthetic"]) == ["a-made", "b-made", "c"]
    assert list(metrics["table"]) == ["LSGAN", "LDM", "Real"]  # in the paper's order
    ldm = metrics["table"]["LDM"]["fid"]
    of_cohorts = [metrics["synthetic"][n]["realism"]["fid"] for n in ("a-made", "b-made")]
    assert ldm["mean"] == pytest.approx(np.mean([found["value"] for found in of_cohorts]))
    assert ldm["low"] == min(found["low"] for found in of_cohorts)
    page = (tmp_path / "reports/made/index.html").read_text()
    assert "a stand-in" in page and "VAE-GAN" in page  # of the paper alone
    assert "reports/made/index.html" in capsys.readouterr().out
    config.synthetic = {None: ["a/made", "a/made/"]}
    with pytest.raises(InputError, match="given twice"):
        evaluate(config)


def test_copies_are_flagged_and_duplicates_are_told(tmp_path, instruments):
    split = ["train"] * 20 + ["test"] * 30
    real = write(tmp_path / "real", table(50, split=split))
    chosen = real.table.iloc[:20].assign(participant_id=[f"sub-c{i}" for i in range(20)])
    writer = CohortWriter(tmp_path / "copies", "copies", {"Name": "test"}, GRID, synthetic=True)
    for row, source in zip(chosen.to_dict("records"), real.table["participant_id"], strict=False):
        writer.add(row, real.read(source))
    writer.finish()
    copies = open_cohort(tmp_path / "copies")
    metrics = run(TIMES, real, {"copies": copies}, {}, instruments, tmp_path / "out")
    for space in ("embedding", "latent", "pixels"):
        assert metrics["synthetic"]["copies"]["audit"][space]["copies"] is True
    assert metrics["notes"] == ["20 of 20 brains of copies equal training brains exactly"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "equal training brains exactly" in page
    assert (tmp_path / "out/figures/neighbours_copies.png").stat().st_size > 5000


def test_several_cohorts_of_one_pair_each_have_a_mean_and_no_interval(tmp_path, instruments):
    names = ("real", "one", "other")
    real, one, other = (write(tmp_path / n, table(2, seed=i)) for i, n in enumerate(names))
    inputs = Inputs(real, {"one": one, "other": other}, {"one": "LDM", "other": "LDM"}, {})
    metrics = evaluate_cohorts(TIMES, inputs, instruments, tmp_path / "out")
    alike = metrics["table"]["LDM"]["ms_ssim"]
    assert len(alike["values"]) == 2 and alike["mean"] is not None
    assert (alike["low"], alike["high"]) == (None, None)


def test_what_is_not_wanted_is_left_out(tmp_path, instruments):
    real, made = (write(tmp_path / name, table(9)) for name in ("real", "made"))
    alone = Instruments(brain_age=instruments.brain_age)
    metrics = run(TIMES, real, {"made": made}, {}, alone, tmp_path / "out")
    assert metrics["features"] is None
    assert metrics["synthetic"]["made"]["realism"] is None
    assert metrics["table"]["made"]["fid"]["mean"] is None
    assert list(metrics["synthetic"]["made"]["agreement"]) == ["age"]
    assert metrics["real"]["reconstruction"] is None
    assert "there is no FID" in (tmp_path / "out" / "index.html").read_text()
    print_summary(metrics, tmp_path / "out")


def test_what_measure_wrote_into_a_cohort_is_not_taken_for_ours(tmp_path, instruments):
    real, made = (write(tmp_path / name, table(9)) for name in ("real", "made"))
    written = pd.read_csv(made.root / "participants.tsv", sep="\t")
    written["measured_ventricular_volume"] = written["measured_brain_volume"] = 1.0
    written.to_csv(made.root / "participants.tsv", sep="\t", index=False)
    made = open_cohort(made.root)
    without = replace(instruments, segmenter=None)
    found = run(TIMES, real, {"made": made}, {}, without, tmp_path / "report")
    assert list(found["synthetic"]["made"]["agreement"]) == ["age"]


def test_what_has_no_ceiling_and_what_nothing_measures(tmp_path, instruments):
    real = write(tmp_path / "real", table(8, age=np.nan, brain_volume=np.nan), table(8))
    made = write(tmp_path / "made", table(8))
    sweep = write(tmp_path / "sweep", table(3).assign(age=[50.0, 60, 70]), sweep="age")
    alone = replace(instruments, segmenter=None)
    metrics = run(TIMES, real, {"made": made}, {"sweep": sweep}, alone, tmp_path / "out")
    assert metrics["synthetic"]["made"]["agreement"]["age"]["ceiling"] is None
    nothing = Instruments()
    metrics = run(TIMES, real, {"made": made}, {"sweep": sweep}, nothing, tmp_path / "out")
    assert metrics["sweeps"]["sweep"]["response"] is None
    assert metrics["synthetic"]["made"]["agreement"] == {}
    assert list(metrics["synthetic"]["made"]["audit"]) == ["pixels"]
    print_summary(metrics, tmp_path / "out")


def test_a_name_changes_no_measure(tmp_path, instruments):
    real, made = (write(tmp_path / name, table(8)) for name in ("real", "reconstructed"))
    metrics = run(TIMES, real, {"reconstructed": made}, {}, instruments, tmp_path / "out")
    alike = metrics["synthetic"]["reconstructed"]["similarity"]
    assert alike == metrics["real"]["similarity"]
    assert alike != metrics["real"]["reconstruction"]["similarity"]


def test_a_thesis_beside_its_figures_is_no_report(tmp_path):
    (tmp_path / "thesis" / "figures").mkdir(parents=True)
    (tmp_path / "thesis" / "figures" / "mine.pdf").write_text("precious")
    with pytest.raises(InputError, match="choose another out"):
        evaluate(EvaluateConfig(synthetic="a", out=str(tmp_path / "thesis")))


def test_what_a_model_learnt_from_is_told_beside_its_audit(tmp_path, instruments):
    real = write(tmp_path / "real", table(8, split=["train", "test"] * 4))
    rows = table(8).iloc[[0, 1, 3, 5]].reset_index(drop=True)
    rows["source_id"] = rows["participant_id"]
    made = write(tmp_path / "made", rows, images_of=table(4, seed=1))

    def notes(**taught):
        made_by = {**made.description["GeneratedBy"][0], "TrainedOn": taught}
        cohort = replace(made, description={"GeneratedBy": [made_by]})
        out = tmp_path / "out"
        return run(TIMES, real, {"made": cohort}, {}, instruments, out)["notes"]

    known = {"cohort_hash": real.content_hash(), "training_rows": 4}
    assert len(notes(**known)) == 1
    assert "1 of 4 brains of made were asked for" in notes(**known)[0]
    assert "2 of the 4 training brains" in notes(**{**known, "training_rows": 2})[0]
    assert "learnt from another cohort" in notes(cohort_hash="0" * 64)[0]

    asked = {**known, "training_rows": 6, "extra": {"cohorts/more": {"rows": 2}}}
    assert "2 brains of cohorts/more as well" in notes(**asked)[0]


def test_an_id_alone_does_not_make_two_people_one():
    here = table(3).assign(sex=["M", "F", None], brain_volume=[1e6, 1e6, np.nan])
    there = here.assign(source_id=here["participant_id"], age=here["age"] + [0, 5, 0])
    there["sex"] = ["M", "F", None]
    assert asked_like(here, there) == {0: 0, 2: 2}
    assert asked_like(here, there.drop(columns="source_id")) == {}
    nothing = dict.fromkeys(("age", "sex", "ventricular_volume", "brain_volume"))
    assert asked_like(here, there.assign(**nothing)) == {}


def test_the_floor_is_of_other_people():
    scans = table(24, subject=[f"person-{i // 2}" for i in range(24)])
    made = {name: Measured(None, table(n), {}) for name, n in {"many": 12, "few": 2}.items()}
    for seed in range(5):
        config = replace(TIMES, seed=seed)
        reference, floor, n = _halves(Measured(None, scans, {}), made, config)
        assert len(reference) == len(floor) == n >= 11
        assert not set(reference.table["subject"]) & set(floor.table["subject"])


def test_a_cohort_of_few_does_not_decide_for_the_others(tmp_path, instruments):
    real, many, few = (write(tmp_path / f"c{n}", table(n)) for n in (24, 12, 2))
    metrics = run(TIMES, real, {"many": many, "few": few}, {}, instruments, tmp_path / "out")
    realism = {name: metrics["synthetic"][name]["realism"] for name in ("many", "few")}
    assert realism["many"]["n"] == 12 and realism["many"]["fid"]["value"] is not None
    assert realism["few"]["fid"]["value"] is None
    assert realism["few"]["fid"]["note"] == "2 brains, too few: all others are 12"
    assert "all others are 12" in (tmp_path / "out" / "index.html").read_text()


def test_what_is_beyond_the_training_range_is_marked(tmp_path, instruments):
    real = write(tmp_path / "real", table(8, split=["train"] * 4 + ["test"] * 4))
    made = write(tmp_path / "made", table(4))
    values = np.linspace(-2e4, 2e5, 5)
    rows = table(5, seed=3).assign(ventricular_volume=values)
    sweep = write(tmp_path / "sweep", rows, rows.assign(ventricular_volume=values.clip(0)),
                  sweep="ventricular_volume")  # fmt: skip
    metrics = run(TIMES, real, {"made": made}, {"sweep": sweep}, instruments, tmp_path / "out")
    low, high = metrics["sweeps"]["sweep"]["training_range"]
    beyond = sum(not low <= value <= high for value in values)
    assert metrics["sweeps"]["sweep"]["response"]["outside"] == beyond > 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Shaded, and marked *: beyond the training" in page
    assert f"({beyond} of 5 brains)" in page


def test_the_measures_of_every_study_are_in_a_report(tmp_path, instruments):
    real = write(tmp_path / "real", table(40, split=["train"] * 10 + ["test"] * 30))
    made = write(tmp_path / "made", table(30))
    metrics = run(TIMES, real, {"made": made}, {}, instruments, tmp_path / "out")
    studies = list((Path(__file__).parents[2] / "conf" / "study").glob("*.yaml"))
    places = {
        place: path.name
        for path in studies
        for place in yaml.safe_load(path.read_text())["measures"].values()
        if not place.startswith("utility.")  # tests/journeys/test_chain.py has these
    }
    assert len(studies) == 4 and places
    for place, study in places.items():
        assert set(read_off(metrics, place)) == {"value", "low", "high"}, study


def test_an_evaluation_that_was_interrupted_goes_on(tmp_path):
    asked = []

    def compute(items, broken_at=None):
        if broken_at in items:
            raise KeyboardInterrupt
        asked.extend(items)
        return {"twice": np.array(items) * 2, "row": np.array([[i, i] for i in items], np.float16)}

    items = list(range(40))
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, {}, items, lambda some: compute(some, 20), "measuring")
    assert asked == items[:16]
    found = stored(tmp_path, {}, items, compute, "measuring")
    assert asked == items  # nothing twice
    assert found["twice"].tolist() == [2 * i for i in items]
    assert found["row"].dtype == np.float16 and found["row"].shape == (40, 2)
    damaged = next(tmp_path.rglob("*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert np.array_equal(stored(tmp_path, {}, items, compute, "")["twice"], found["twice"])


def test_what_other_code_has_measured_is_measured_again(tmp_path, monkeypatch):
    def measure_with(code):
        asked = []
        monkeypatch.setattr(store, "CODE", (code,))
        store.code_hash.cache_clear()
        stored(tmp_path, {}, [1, 2], lambda items: asked.extend(items) or {"n": np.ones(2)}, "")
        return asked

    assert measure_with("models.py") == [1, 2]
    assert measure_with("models.py") == []
    assert measure_with("networks/*.py") == [1, 2]
    monkeypatch.undo()
    store.code_hash.cache_clear()
    package = Path(store.__file__).parents[1]
    assert all(list(package.glob(pattern)) for pattern in store.CODE)


def test_features_can_be_left_out():
    nothing = dict.fromkeys(("features", "segmenter", "brain_age", "autoencoder", "embedding"))
    found = open_instruments(EvaluateConfig(**nothing))
    assert (found.named(), found.extractor) == ({}, None)


def test_bits_do_not_change_what_is_measured_beyond_rounding(tmp_path):
    small = SavedSegmenter(
        grid=GridConfig(**paper_grid(4).to_dict()),
        network=SegmenterConfig(features=[4, 4, 4, 4, 4, 4]),
        classes=["background", "csf", "grey", "white", "ventricle"],
    )
    torch.manual_seed(0)
    save_model(Segmenter(small), tmp_path / "m", "")
    nothing = dict.fromkeys(("features", "brain_age", "autoencoder", "embedding"))
    images = torch.rand(2, 1, 40, 56, 40)
    exact, rounded = (
        open_instruments(
            EvaluateConfig(segmenter=str(tmp_path / "m"), precision=Precision[name], **nothing)
        ).measure(images)["measured_brain_volume"]
        for name in ("32-true", "bf16-mixed")
    )
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, rtol=0.02)


def test_a_swap_is_told_before_networks_are_fetched(tmp_path):
    real = write(tmp_path / "real", table(3))
    made = write(tmp_path / "made", table(3))
    description = made.root / "dataset_description.json"
    facts = json.loads(description.read_text())
    facts["GeneratedBy"][0]["Name"] = "brain_ldm sample"
    description.write_text(json.dumps(facts))
    swapped = EvaluateConfig(real=str(made.root), synthetic=str(real.root), medicalnet="nowhere")
    with pytest.raises(InputError, match="is it the synthetic one"):
        evaluate(swapped)
    with pytest.raises(InputError, match="seed is -1"):
        evaluate(EvaluateConfig(real=str(real.root), synthetic=str(made.root), seed=-1))


def test_another_calibration_is_measured_anew(tmp_path, instruments, monkeypatch):
    real, made = (write(tmp_path / name, table(6)) for name in ("real", "made"))
    first = run(TIMES, real, {"made": made}, {}, instruments, tmp_path / "out")
    monkeypatch.setattr(
        instruments.segmenter, "config", SimpleNamespace(trained_on={}, calibration=[0, 2]), False
    )
    monkeypatch.setattr(
        StubSegmenter,
        "volumes",
        lambda self, images: dict.fromkeys(FULL, images[:, 0, 1, 0, 0] * 1e5),
    )
    second = run(TIMES, real, {"made": made}, {}, instruments, tmp_path / "out")
    for name in ("ventricular_volume", "brain_volume"):
        one, other = (m["real"]["agreement"][name]["mae"] for m in (first, second))
        assert one != other


def test_a_synthetic_cohort_is_not_taken_for_the_real_one(tmp_path, instruments):
    real, made = (write(tmp_path / name, table(3)) for name in ("real", "made"))
    swapped = replace(made, description={"GeneratedBy": [{"Name": "brain_ldm sample"}]})
    with pytest.raises(InputError, match=r"made by brain_ldm sample: is it .*real the real one"):
        run(TIMES, swapped, {"s": real}, {}, instruments, tmp_path / "out")


def test_a_second_evaluation_measures_nothing_again(tmp_path, instruments, monkeypatch):
    real, made = (write(tmp_path / name, table(6)) for name in ("real", "made"))
    first = run(TIMES, real, {"made": made}, {}, instruments, tmp_path / "out")

    def none(*_):
        raise AssertionError("measured again")

    for kind in (StubSegmenter, StubBrainAge):
        monkeypatch.setattr(kind, "volumes" if kind is StubSegmenter else "predict", none)
    assert run(TIMES, real, {"made": made}, {}, instruments, tmp_path / "out") == first
