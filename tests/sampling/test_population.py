"""Covariates drawn like those of a cohort: distribution kept, nobody's row repeated."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.spatial import cKDTree

from brain_ldm.cohorts.covariates import CovariateEncoder
from brain_ldm.errors import InputError
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.population import resembling
from brain_ldm.sampling.requests import requested_rows
from brain_ldm.sampling.tables import source_hash

NUMBERS = ["age", "ventricular_volume", "brain_volume"]


def people(n, seed=0):
    """Ages in whole years, skewed ventricles that grow with age, brains that differ by sex."""
    random = np.random.default_rng(seed)
    age = random.integers(44, 83, n)
    sex = np.where(random.random(n) < 0.6, "F", "M")
    ventricles = np.exp(10 + 0.03 * (age - 63) + 0.35 * random.normal(size=n))
    brain = 1.1e6 + 1.3e5 * (sex == "M") - 2e3 * (age - 63) + 8e4 * random.normal(size=n)
    return pd.DataFrame(
        {"sex": sex, "age": age, "ventricular_volume": ventricles, "brain_volume": brain}
    )


def nearest(points, others, scale, neighbour=1):
    return cKDTree(others / scale).query(points / scale, k=[neighbour])[0][:, 0]


def check(real, drawn, tolerance):
    """Compare within sampling errors of `drawn`, where `tolerance` adds those of few real rows."""
    for sex, group in drawn.groupby("sex"):
        true = real[real["sex"] == sex][NUMBERS]
        share = len(true) / len(real)
        error = np.sqrt(share * (1 - share) / len(drawn))
        assert len(group) / len(drawn) == pytest.approx(share, abs=4 * error)
        error = 4 / np.sqrt(len(group)) + tolerance
        sd = true.std(ddof=0)
        assert ((group[NUMBERS].mean() - true.mean()).abs() / sd < error).all()
        assert np.allclose(group[NUMBERS].std() / sd, 1, atol=error)
        assert np.allclose(group[NUMBERS].corr(), true.corr(), atol=error)


def test_levels_means_spreads_and_correlations_are_kept():
    real = people(600)
    drawn = resembling(real, 5000, np.random.default_rng(1))
    check(real, drawn, tolerance=0.02)
    for name in NUMBERS:
        assert drawn[name].between(real[name].min(), real[name].max()).all()
        assert stats.ks_2samp(drawn[name], real[name]).statistic < 0.04


@pytest.mark.parametrize("n", [30, 600])
def test_no_row_is_anybodys_nor_close_to_it(n):
    real = people(n)
    drawn = resembling(real, 5000, np.random.default_rng(1))
    check(real, drawn, tolerance=0.02 if n > 30 else 0.1)
    scale = real[NUMBERS].std().to_numpy()
    distances = nearest(drawn[NUMBERS].to_numpy(), real[NUMBERS].to_numpy(), scale)
    between = nearest(real[NUMBERS].to_numpy(), real[NUMBERS].to_numpy(), scale, 2)
    assert distances.min() > 0
    # As far from the closest person as people are from each other.
    assert np.median(distances) > 0.6 * np.median(between)


def test_whole_years_alone_are_not_repeated():
    real = people(300)[["age"]]
    drawn = resembling(real, 3000, np.random.default_rng(1))
    assert not drawn["age"].isin(real["age"]).any()
    assert drawn["age"].between(44, 82).all()
    assert drawn["age"].mean() == pytest.approx(real["age"].mean(), abs=1)
    assert drawn["age"].std() == pytest.approx(real["age"].std(), rel=0.05)


def test_two_values_are_levels_and_keep_their_shares():
    real = people(400)[["age", "brain_volume"]].assign(ill=np.repeat([0.0, 1.0], [300, 100]))
    drawn = resembling(real, 4000, np.random.default_rng(1))
    assert set(drawn["ill"]) == {0.0, 1.0}
    assert drawn["ill"].mean() == pytest.approx(0.25, abs=0.03)
    sexes = resembling(people(400)[["sex"]], 4000, np.random.default_rng(1))
    assert (sexes["sex"] == "F").mean() == pytest.approx(0.6, abs=0.06)


ENCODER = CovariateEncoder(
    ["sex", *NUMBERS], [0, 44, 5e3, 8e5], [1, 82, 1e5, 1.6e6], ["", "year", "mm3", "mm3"]
)


@pytest.fixture
def cohort(tmp_path):
    root = tmp_path / "cohort"
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "People"}))
    table = people(60)
    table.insert(0, "participant_id", [f"sub-{i:03d}" for i in range(len(table))])
    table["split"] = np.repeat(["train", "test"], [50, 10])
    table.loc[0, "age"] = 90  # outside the training range
    table.loc[1:2, "brain_volume"] = np.nan
    table.to_csv(root / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    return root


def asked(cohort, n=300, **options):
    return requested_rows(SampleConfig(model="m", population=str(cohort), n=n, **options), ENCODER)


def test_training_rows_that_are_complete_and_in_range_are_drawn_from(cohort, capsys):
    drawn = asked(cohort)
    assert "47 of 50 rows of split train are drawn from" in capsys.readouterr().out
    assert drawn["age"].max() < 82 and drawn["seed"].is_unique
    assert drawn[["sex", *NUMBERS]].equals(asked(cohort)[["sex", *NUMBERS]])
    assert not drawn["age"].equals(asked(cohort, seed=1)["age"])
    assert asked(cohort, extrapolate=True)["age"].max() > 82
    assert asked(cohort, covariates=["age"])[["sex", "brain_volume"]].isna().all(axis=None)


def test_another_population_has_another_hash_and_a_measured_one_the_same(cohort):
    def found(**options):
        return source_hash(SampleConfig(population=str(cohort), n=3, **options), ENCODER)

    before, of_age = found(), found(covariates=["age"])
    path = cohort / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table.assign(measured_brain_volume="1100000").to_csv(path, sep="\t", index=False)
    assert found() == before != of_age
    table.loc[5, "brain_volume"] = "1100000"
    table.to_csv(path, sep="\t", index=False)
    assert found() != before and found(covariates=["age"]) == of_age


def test_too_few_rows_are_told_in_one_line(cohort):
    with pytest.raises(InputError, match=r"cohort: \d rows with sex [FM] are too few, 10 are need"):
        asked(cohort, split="test")
    assert len(asked(cohort, split="test", covariates=["brain_volume"])) == 300
    with pytest.raises(InputError, match="no rows of split val"):
        asked(cohort, split="val")
    with pytest.raises(InputError, match="population: no covariate is asked for"):
        asked(cohort, covariates=[])
    table = pd.read_csv(cohort / "participants.tsv", sep="\t")
    table.drop(columns="brain_volume").to_csv(cohort / "participants.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=r"participants.tsv: column brain_volume is missing"):
        asked(cohort)
