"""Which brains are asked for: tables, ranges, sweeps, and a seed for each."""

import numpy as np
import pandas as pd
import pytest

from brain_ldm.cohorts.covariates import CovariateEncoder
from brain_ldm.errors import InputError
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.requests import requested_rows

ENCODER = CovariateEncoder(
    ["sex", "age", "ventricular_volume"], [0, 44, 1e4], [1, 82, 9e4], ["", "year", "mm3"]
)


def rows(**options):
    return requested_rows(SampleConfig(model="m", **options), ENCODER)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text(
        "participant_id\tage\tsex\tventricular_volume\tsplit\n"
        "sub-1\t50\tF\t20000\ttrain\n"
        "sub-2\t60.5\tM\tn/a\ttest\n"
        "sub-3\t70\tn/a\t40000\ttest\n"
    )
    return path


def test_a_table_gives_its_rows_and_where_they_come_from(table):
    asked = rows(table=str(table), split="test")
    assert list(asked["source_id"]) == ["sub-2", "sub-3"]
    assert list(asked["age"]) == [60.5, 70]
    assert np.allclose(
        ENCODER.encode(asked), [[1, (60.5 - 44) / 38, -1], [-1, (70 - 44) / 38, 0.375]]
    )
    assert len(rows(table=str(table), n=1)) == 1


def test_ranges_are_kept_and_default_to_the_training_range():
    asked = rows(n=200, ranges={"age": [60, 70], "sex": "F"}, seed=3)
    assert asked["age"].between(60, 70).all() and asked["age"].std() > 2
    assert set(asked["sex"]) == {"F"}
    assert asked["ventricular_volume"].between(1e4, 9e4).all()
    assert set(rows(n=50)["sex"]) == {"F", "M"}


def test_a_sweep_changes_one_covariate_and_keeps_the_seed():
    asked = rows(n=5, sweep="ventricular_volume", ranges={"age": 70})
    assert np.allclose(asked["ventricular_volume"], np.linspace(1e4, 9e4, 5))
    assert asked["seed"].nunique() == 1
    assert set(asked["age"]) == {70} and set(asked["sex"]) == {"F"}


def test_sex_alone_and_no_covariate_at_all():
    encoded = ENCODER.encode(rows(n=4, covariates=["sex"]))
    assert (encoded[:, 1:] == -1).all() and (encoded[:, 0] >= 0).all()
    assert (ENCODER.encode(rows(n=4, covariates=[])) == -1).all()


def test_seeds_differ_between_rows_and_do_not_depend_on_their_number():
    few, many = rows(n=3, seed=5), rows(n=30, seed=5)
    assert list(few["seed"]) == list(many["seed"][:3])
    assert many["seed"].is_unique
    assert set(many["seed"]).isdisjoint(rows(n=30, seed=6)["seed"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "table=… or n=…"),
        ({"n": 0}, "at least 1"),
        ({"n": 2, "covariates": ["height"]}, "no covariate 'height'"),
        ({"n": 2, "sweep": "weight"}, "no covariate 'weight'"),
        ({"n": 2, "sweep": "sex"}, "needs a covariate that is a number"),
        ({"n": 2, "ranges": {"sex": "female"}}, "give F or M"),
        ({"n": 2, "ranges": {"age": ["old", 3]}}, "ranges.age"),
        ({"n": 2, "ranges": [1]}, "ranges:"),
        ({"n": 2, "ranges": {"age": -10}}, "age is -10"),
        ({"table": "none.tsv"}, "none.tsv: no such table"),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(options, said):
    with pytest.raises(InputError, match=said) as error:
        rows(**options)
    assert "\n" not in str(error.value)


def test_a_bad_table_names_the_row(table):
    frame = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    frame.loc[1, "sex"] = "X"
    frame.to_csv(table, sep="\t", index=False)
    with pytest.raises(InputError, match=r"row 2 .*sex is 'X'"):
        rows(table=str(table))
    with pytest.raises(InputError, match="no rows of split val"):
        rows(table=str(table), split="val")
