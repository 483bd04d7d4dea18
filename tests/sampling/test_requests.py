"""Which brains are asked for: tables, ranges, sweeps, grids, and a seed for each."""

from itertools import product

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
        "sub-4\t83.5\tF\t40000\tval\n"
        "sub-5\t43\tF\t95000\tval\n"
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
    again = rows(n=5, sweep="ventricular_volume", ranges={"age": 70}, noises=3)
    assert list(again["ventricular_volume"]) == 3 * list(asked["ventricular_volume"])
    assert again.groupby("seed", sort=False).size().tolist() == [5, 5, 5]


def test_a_grid_asks_for_every_combination_once():
    asked = rows(
        grid={"ventricular_volume": 3, "sex": 2}, ranges={"ventricular_volume": [2e4, 4e4]}
    )
    wanted = set(product("FM", [63.0], [2e4, 3e4, 4e4]))
    assert set(asked[["sex", "age", "ventricular_volume"]].itertuples(index=False)) == wanted
    assert len(asked) == len(wanted) and asked["seed"].is_unique
    # One step is the middle, and what is not named is fixed, as a sweep fixes it.
    assert rows(grid={"age": 1}).iloc[0][["sex", "age", "ventricular_volume"]].tolist() == [
        *("F", 63, 5e4)
    ]
    assert set(rows(grid={"age": 2}, ranges={"sex": "M"})["sex"]) == {"M"}


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
        ({"n": 3, "sweep": "age", "noises": 0}, "noises is 0; give at least 1"),
        ({"n": 2, "covariates": ["height"]}, "no covariate 'height'"),
        ({"n": 2, "sweep": "weight"}, "no covariate 'weight'"),
        ({"grid": {"weight": 2}}, "no covariate 'weight'"),
        ({"n": 2, "sweep": "sex"}, "needs a covariate that is a number.*grid={sex: 2}"),
        ({"n": 2, "sweep": "age", "covariates": ["sex"]}, "age: covariates leaves it out"),
        ({"grid": {"sex": 3}}, "grid.sex: 3 steps; give 2, for F and M"),
        ({"grid": {"age": 0}}, "grid.age: 0 steps; give at least 1"),
        ({"n": 2, "ranges": {"sex": "female"}}, "give F or M"),
        ({"n": 2, "ranges": {"age": ["old", 3]}}, "ranges.age"),
        ({"n": 2, "ranges": [1]}, r"ranges: \[1\]; give it by covariate"),
        ({"grid": 5}, "grid: 5; give it by covariate, e.g. 'grid={age: 5, sex: 2}'"),
        ({"grid": {"age": 2.5}}, "grid: {'age': 2.5}; give it by covariate"),
        ({"from_": "c", "change": {"age": "ten"}}, "change: {'age': 'ten'}; give it by covariate"),
        ({"table": "none.tsv"}, "none.tsv: no such table"),
        ({"sweep": "age"}, "sweep: say how many, n=…"),
        ({"population": "c"}, "population: say how many, n=…"),
        ({"population": "none", "n": 2}, "none: no such cohort folder"),
        ({"from_": "none"}, "none: no such cohort folder"),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(options, said):
    with pytest.raises(InputError, match=said) as error:
        rows(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"table": "t", "population": "c"}, "table and population both say which brains; give one"),
        ({"grid": {"age": 2}, "from_": "c"}, "grid and from both say which brains"),
        ({"sweep": "age", "from_": "c", "n": 2}, "sweep and from both say which brains"),
        ({"table": "t", "ranges": {"age": 60}}, "ranges goes with n or grid .*not with table"),
        ({"population": "c", "n": 2, "ranges": {"age": 60}}, "ranges goes .*not with population"),
        ({"n": 2, "split": "test"}, "split goes with table or population or from, not with n"),
        ({"grid": {"age": 2}, "n": 2}, "n goes with table .*not with grid"),
        ({"n": 2, "noises": 2}, "noises goes with sweep, not with n"),
        ({"n": 2, "change": {"age": 2}}, "change goes with from, not with n"),
    ],
)
def test_what_contradicts_itself_is_told_in_one_line(options, said):
    with pytest.raises(InputError, match=said) as error:
        rows(**options)
    assert "\n" not in str(error.value)


def test_values_outside_the_training_range_are_refused_unless_asked_for(table):
    with pytest.raises(InputError) as error:
        rows(table=str(table))
    assert str(error.value) == (
        f"{table}: age of row 4 (sub-4) is 83.5 year, outside the training range of 44 to 82 year "
        "(2 of 5 rows are outside); take such rows out, or give extrapolate=true"
    )
    encoded = ENCODER.encode(rows(table=str(table), extrapolate=True))
    assert encoded[3, 1] > 1 and encoded[4, 1] < 0 and encoded[4, 2] > 1
    with pytest.raises(InputError, match=r"ranges.ventricular_volume is 1000000 mm3, .*\(3 of 3 r"):
        rows(n=3, sweep="age", ranges={"ventricular_volume": 1_000_000})
    with pytest.raises(InputError, match=r"ranges.age is 90 year, .*\(1 of 2 rows are outside\)"):
        rows(grid={"age": 2}, ranges={"age": [80, 90]})
    # So far below, a value would read as missing: no option helps.
    with pytest.raises(InputError, match=r"ranges.age is -10 year"):
        rows(n=2, ranges={"age": -10})
    with pytest.raises(InputError, match=r"age is -10, a whole range below .* read as missing"):
        rows(n=2, ranges={"age": -10}, extrapolate=True)


def test_a_bad_table_names_the_row(table):
    frame = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    frame.loc[1, "sex"] = "X"
    frame.to_csv(table, sep="\t", index=False)
    with pytest.raises(InputError, match=rf"{table}: row 2 \(sub-2\): sex is 'X'"):
        rows(table=str(table))
    with pytest.raises(InputError, match="no rows of split none"):
        rows(table=str(table), split="none")
