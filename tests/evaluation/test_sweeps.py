"""What a sweep's measurements say, on lines whose slopes are known."""

import numpy as np
import pandas as pd
import pytest

from brain_ldm.evaluation.sweeps import leakage, response


def sweep(slope_inside: float, slope_outside: float, leak: float) -> pd.DataFrame:
    """Two noises, asked for ages of 30 to 100 where 40 to 90 are known."""
    ages = np.arange(30.0, 101.0, 10.0)
    inside = np.clip(ages, 40, 90)
    measured = 5 + slope_inside * inside + slope_outside * (ages - inside)
    parts = [
        pd.DataFrame(
            {
                "age": ages,
                "seed": seed,
                "measured_age": measured + seed,
                "measured_brain_volume": 1e6 + leak * ages + 1000 * seed,
            }
        )
        for seed in (1, 2)
    ]
    return pd.concat(parts).sample(frac=1, random_state=0)


def test_slopes_inside_and_beyond_the_training_range():
    found = response(sweep(0.8, 0.2, 0), "age", 40, 90)
    assert found.slope == pytest.approx(0.8)
    assert found.slope_below == pytest.approx(0.2)
    assert found.slope_above == pytest.approx(0.2)
    assert found.slope_sd == pytest.approx(0, abs=1e-9)
    assert found.monotonicity == pytest.approx(1)
    assert (found.n, found.seeds, found.outside) == (16, 2, 4)
    falling = response(sweep(-0.8, 0.2, 0), "age", 30, 100)
    assert falling.slope_below is None and falling.outside == 0


def test_leakage_is_the_drift_over_the_training_range():
    real = pd.DataFrame({"measured_brain_volume": [1e6, 1.1e6, 1.2e6]})
    found = leakage(sweep(1, 1, -100), "age", 40, 90, real)
    assert list(found) == ["brain_volume"]
    assert found["brain_volume"].change == pytest.approx(-100 * 50)
    assert found["brain_volume"].change_in_sd == pytest.approx(-0.05)


def test_one_value_has_no_slope():
    table = pd.DataFrame({"age": [50.0], "measured_age": [51.0], "measured_brain_volume": [1e6]})
    found = response(table, "age", 40, 90)
    assert (found.slope, found.slope_above, found.monotonicity) == (None, None, None)
    assert leakage(table, "age", 40, 90, table) == {}
