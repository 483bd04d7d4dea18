import json

import numpy as np
import pandas as pd
import pytest

from brain_ldm.cohorts.covariates import MISSING, CovariateEncoder
from brain_ldm.errors import InputError

TABLE = pd.DataFrame(
    {
        "participant_id": ["sub-1", "sub-2", "sub-3"],
        "age": [40.0, 60.0, 80.0],
        "sex": ["F", "M", "F"],
        "brain_volume": [1.0e6, 1.2e6, 1.4e6],
    }
)


def test_ranges_become_0_to_1_and_sex_its_code():
    encoder = CovariateEncoder.fit(TABLE, ["sex", "age"])
    encoded = encoder.encode(TABLE)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded, [[0, 0], [1, 0.5], [0, 1]])


def test_sex_is_coded_alike_where_only_one_occurs():
    women = TABLE[TABLE["sex"] == "F"]
    encoder = CovariateEncoder.fit(women, ["sex"])
    assert encoder.encode(pd.DataFrame({"sex": ["M", "F"]})).ravel().tolist() == [1, 0]


def test_missing_values_and_absent_columns_are_a_state_of_their_own():
    encoder = CovariateEncoder.fit(TABLE, ["age", "sex", "brain_volume"])
    table = pd.DataFrame({"age": [np.nan, 40], "sex": ["M", None]})
    assert encoder.encode(table).tolist() == [[MISSING, 1, MISSING], [0, MISSING, MISSING]]


def test_values_beyond_the_range_extrapolate_and_are_reported():
    encoder = CovariateEncoder.fit(TABLE, ["age"])
    table = pd.DataFrame({"age": [30.0, 50.0, 100.0]})
    np.testing.assert_allclose(encoder.encode(table).ravel(), [-0.25, 0.25, 1.5])
    assert encoder.check_range(table) == [(0, "age", 30, 40, 80), (2, "age", 100, 40, 80)]


def test_no_value_reads_as_missing():
    encoder = CovariateEncoder.fit(TABLE, ["age"])
    with pytest.raises(InputError, match=r"row 1: age is 0"):
        encoder.encode(pd.DataFrame({"age": [0.0]}))


def test_an_encoder_travels_as_plain_data():
    encoder = CovariateEncoder.fit(TABLE, ["sex", "age", "brain_volume"])
    data = json.loads(json.dumps(encoder.to_dict()))
    assert data["covariates"][1] == {"name": "age", "unit": "year", "low": 40, "high": 80}
    again = CovariateEncoder.from_dict(data)
    np.testing.assert_array_equal(again.encode(TABLE), encoder.encode(TABLE))


@pytest.mark.parametrize(
    ("column", "value", "culprit"),
    [("sex", "W", "sub-2.*sex is 'W'"), ("age", "old", "sub-2.*age is 'old'")],
)
def test_wrong_values_are_named_by_row_and_column(column, value, culprit):
    encoder = CovariateEncoder.fit(TABLE, ["sex", "age"])
    table = TABLE.astype(object)
    table.loc[1, column] = value
    with pytest.raises(InputError, match=culprit):
        encoder.encode(table)


def test_a_constant_or_empty_covariate_cannot_be_scaled():
    with pytest.raises(InputError, match=r"age.*every training row has 40"):
        CovariateEncoder.fit(TABLE[:1], ["age"])
    with pytest.raises(InputError, match="ventricular_volume: no value"):
        CovariateEncoder.fit(TABLE, ["ventricular_volume"])
