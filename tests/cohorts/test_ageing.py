import numpy as np
import pytest

from brain_ldm.cohorts.ageing import AGES, draw_person

PEOPLE = [draw_person(np.random.default_rng(i)) for i in range(2000)]


def column(name, sex=None):
    return np.array([getattr(p, name) for p in PEOPLE if sex in (None, p.sex)])


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


def test_ages_and_sexes_are_even_over_the_papers_range():
    ages = column("age")
    assert ages.min() >= AGES[0] and ages.max() <= AGES[1]
    assert ages.mean() == pytest.approx(np.mean(AGES), abs=1)
    assert len(column("age", "F")) / len(PEOPLE) == pytest.approx(0.5, abs=0.05)


def test_log_ventricular_volume_follows_age_as_in_people():
    assert correlation(np.log(column("ventricular_volume")), column("age")) == pytest.approx(
        0.5, abs=0.06
    )
    # The paper's range in mm³.
    assert column("ventricular_volume").min() > 5_000
    assert column("ventricular_volume").max() < 171_375


def test_heads_of_men_are_larger_with_scatter_in_both_sexes():
    men, women = column("head_volume", "M"), column("head_volume", "F")
    assert men.mean() / women.mean() == pytest.approx(1.11, abs=0.015)
    assert men.min() < women.mean() < men.mean() < women.max()


def test_contrast_falls_and_sulci_open_with_age():
    assert correlation(column("contrast"), column("age")) < -0.8
    assert correlation(column("sulci"), column("age")) > 0.8
    assert column("contrast").min() > 0
