"""Sex by a classifier on features of known separation."""

import numpy as np
from scipy import stats

from brain_ldm.evaluation.sex import learn_sex, sex_agreement


def brains(n: int, apart: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    sex = np.array(["F", "M"] * (n // 2), dtype=object)
    features = random.normal(size=(n, 6))
    features[:, 0] += np.where(sex == "M", apart, 0)
    return features * [1, 9, 0.1, 1, 1, 1], sex


def test_it_finds_as_much_as_there_is():
    model = learn_sex(*brains(400, 2.0, 0))
    features, sex = brains(1000, 2.0, 1)
    found = sex_agreement(model, features, sex, 500, 0)
    best = stats.norm.cdf(1.0)  # two Gaussians two deviations apart
    assert abs(found.balanced_accuracy - best) < 0.03
    assert found.low < found.balanced_accuracy < found.high
    assert abs(found.auc - stats.norm.cdf(2 / np.sqrt(2))) < 0.03
    nothing = sex_agreement(model, features, np.random.default_rng(0).permutation(sex), 500, 0)
    assert nothing.low < 0.5 < nothing.high


def test_unknown_rows_are_left_out_and_one_sex_alone_is_a_note():
    features, sex = brains(60, 3.0, 2)
    sex[:10] = None
    model = learn_sex(features, sex)
    assert sex_agreement(model, features, sex, 50, 0).n == 50
    alone = sex_agreement(model, features, np.array(["F"] * 60, dtype=object), 50, 0)
    assert alone.balanced_accuracy is None and "both sexes" in alone.note
    assert learn_sex(features[:12], sex[:12]) is None
