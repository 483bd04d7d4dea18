"""Studies: their points run commands, and end in one table and one figure."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brain_ldm.errors import InputError
from brain_ldm.studies import figure, study
from brain_ldm.studies.study import read_off

SHARE = {"share": 0.1, "low": 0.0, "high": 0.2}
METRICS = {
    "synthetic": {
        "made": {
            "realism": {
                "fid": {"value": 2.0, "low": 1.5, "high": 2.5, "note": None},
                "coverage": {"value": None, "low": None, "high": None, "note": "too few"},
            },
            "similarity": {"ms_ssim": {"value": 0.8, "low": 0.7, "high": 0.9}},
            "agreement": {
                "ventricular_volume": {"r": 0.9, "r_low": 0.8, "r_high": 0.95},
                "age": {"r": 0.7, "r_low": 0.6, "r_high": 0.8},
            },
            "audit": {
                "embedding": {
                    "similarity": {"synthetic": SHARE},
                    "gap": {"synthetic": SHARE},
                    "copies": True,
                }
            },
        }
    },
    "real": {"floor": {"n": 40, "n_real": 40, "fid": {"value": 1.0, "low": 0.5, "high": 1.5}}},
    "features": {"name": "stand-in: an encoder", "sha256": "a" * 64, "stand_in": True},
    "utility": [{"mae": 5.0, "mae_low": 4.0, "mae_high": 6.0}, {"mae": 9.0}],
}


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("synthetic.realism.fid", (2.0, 1.5, 2.5)),
        ("synthetic.agreement.age.r", (0.7, 0.6, 0.8)),
        ("synthetic.audit.embedding.similarity.synthetic", (0.1, 0.0, 0.2)),
        ("synthetic.audit.embedding.copies", (1, None, None)),
        ("utility.0.mae", (5.0, 4.0, 6.0)),
        ("utility.1.mae", (9.0, None, None)),
    ],
)
def test_measures_are_read_off_with_their_intervals(place, expected):
    found = read_off(METRICS, place)
    assert (found["value"], found["low"], found["high"]) == expected


@pytest.mark.parametrize("place", ["synthetic.realism.kid", "utility.2.mae", "nothing"])
def test_a_place_that_is_none_is_named(place):
    with pytest.raises(InputError, match=f"measures: {place} is not in"):
        read_off(METRICS, place)


@pytest.fixture
def stand_in(monkeypatch):
    """Commands that do nothing, but for the last one, which writes a report."""
    ran = []

    def run(command: str, out: Path) -> None:
        ran.append(command.replace("$OUT", str(out)))
        if command.startswith("evaluate"):
            (out / "report").mkdir(parents=True, exist_ok=True)
            (out / "report" / "metrics.json").write_text(json.dumps(METRICS))

    monkeypatch.setattr(study, "run_command", run)
    return ran


def test_a_study_ends_in_a_table_and_a_figure(workplace, run_command, stand_in):
    code, out, err = run_command(
        "study", "-m", "study=cohort_size", "point.training_brains=20,40,80"
    )
    assert code == 0, err
    folder = workplace / "reports" / "study_cohort_size"
    table = pd.read_csv(folder / "table.tsv", sep="\t")
    assert table["training_brains"].tolist() == [20, 40, 80]
    assert table["coverage"].isna().all()
    assert table["FID"].tolist() == ["2 [1.5, 2.5]"] * 3
    assert (folder / "figure.png").stat().st_size > 5000
    assert "Quality against the number of training brains" in out
    assert "best" not in out  # a study compares, it does not choose
    assert (
        table["distances"][0] == "features: stand-in: an encoder aaaaaaaaaaaa, 40 against 40 brains"
    )
    first = stand_in[1]
    assert first.startswith("train experiment=ae_demo data.rows=20 ")
    assert "out=reports/study_cohort_size/0/autoencoder" in first

    # Again it is refused, and gone on with when asked.
    code, _, err = run_command("study", "-m", "study=cohort_size", "point.training_brains=20,40")
    assert code == 2 and "resume=auto" in err
    assert (
        run_command(
            "study", "-m", "study=cohort_size", "point.training_brains=20,40", "resume=auto"
        )[0]
        == 0
    )


def test_the_figure_tells_series_and_dashes_apart(tmp_path):
    points = [
        {
            "study": {"title": "Steps", "x": "steps", "series": "sampler", "dashes": "grid"},
            "point": {"steps": steps, "sampler": sampler, "grid": grid},
            "measures": {"FID": {"value": 1 / steps, "low": None, "high": None}},
        }
        for sampler in ("ddim", "ddpm")
        for grid in ("leading", "trailing")
        for steps in (20, 5)
    ]
    drawn = figure.draw(tmp_path / "figure.png", points, "")
    lines = [bars.lines[0] for bars in drawn.axes[0].containers]
    looks = [(line.get_color(), line.get_linestyle()) for line in lines]
    assert len(set(looks)) == 4
    drawn_at = np.array([line.get_xdata() for line in lines])
    assert drawn_at == pytest.approx(np.array([[5, 20]] * 4), rel=0.05)
    assert (np.diff(drawn_at, axis=0) > 0).all()  # side by side, or intervals hide each other
    named = {
        legend.get_title().get_text(): [text.get_text() for text in legend.get_texts()]
        for legend in drawn.legends
    }
    assert named == {"sampler": ["ddim", "ddpm"], "grid": ["leading", "trailing"]}


def test_a_point_that_fails_leaves_the_others(workplace, run_command, stand_in, monkeypatch):
    quiet = study.run_command

    def fails_at_40(command: str, out: Path) -> None:
        if "data.rows=40" in command:
            raise InputError("`train …` ended with exit code 1")
        quiet(command, out)

    monkeypatch.setattr(study, "run_command", fails_at_40)
    code, _, err = run_command("study", "-m", "study=cohort_size", "point.training_brains=20,40,80")
    assert code == 2 and "ended with exit code 1" in err
    table = pd.read_csv(workplace / "reports/study_cohort_size/table.tsv", sep="\t")
    assert table["training_brains"].tolist() == [20, 80]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["study=nothing"], "cohort_size"),
        (["study=cohort_size", "x=brain"], "x is 'brain', but point has only training_brains"),
        (["study=cohort_size", "commands=[rm -rf]"], "'rm' is none of phantom"),
    ],
)
def test_mistakes_are_told_in_a_line(workplace, run_command, stand_in, options, expected):
    code, _, err = run_command("study", "-m", *options, "point.training_brains=20")
    assert code == 2
    assert expected in err and "Traceback" not in err
    assert stand_in == []


def test_one_point_alone_is_no_study(workplace, one_line, stand_in):
    assert "add -m" in one_line("study", "study=cohort_size")
    assert "add commands=…, or a study=… that sets it" in one_line("study")


def test_a_command_that_fails_stops_its_point(workplace, capfd):
    with pytest.raises(InputError, match=r"`evaluate real=nowhere` ended with exit code 2"):
        study.run_command("evaluate real=nowhere", Path())
    assert "no such cohort folder" in capfd.readouterr().err


def test_out_may_have_spaces(workplace, run_command, monkeypatch):
    ran = []

    class Process:
        def __init__(self, words):
            ran.append(words)

        def wait(self):
            return 3

    monkeypatch.setattr(study.subprocess, "Popen", Process)
    with pytest.raises(InputError, match="exit code 3"):
        study.run_command(
            "train experiment=ae_demo 'data.extra=[a, b]' out=$OUT/ae", Path("my study")
        )
    assert ran[0][2:] == ["brain_ldm.train", "experiment=ae_demo", "data.extra=[a, b]",
                          "out=my study/ae"]  # fmt: skip
