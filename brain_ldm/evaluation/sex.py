"""Sex by a classifier: a logistic regression on features, learnt on real training rows alone."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
LEAST = 2 * FOLDS  # rows of each sex to learn from


@dataclass(frozen=True)
class SexAgreement:
    """Requested (of real brains: true) sex against the classifier's.

    Attributes:
        n: brains with a value.
        balanced_accuracy: mean of the shares of each sex that are recognised; .5 is chance.
        low, high: its 95 % percentile bootstrap interval, each sex resampled by itself.
        auc: area under the receiver operating characteristic.
        note: why there is none.
    """

    n: int
    balanced_accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    auc: float | None = None
    note: str | None = None


def learn_sex(features: np.ndarray, sex: np.ndarray) -> GridSearchCV | None:
    """Fit the classifier; None where fewer than ten of either sex are known.

    Features are standardised; the ridge penalty is chosen by 5-fold cross-validation.

    Args:
        features: (n, d).
        sex: (n,) "F", "M" or missing.
    """
    known = np.isin(sex, ("F", "M"))
    if min((sex[known] == code).sum() for code in "FM") < LEAST:
        return None
    model = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced")
    )
    strengths = {"logisticregression__C": np.logspace(-4, 2, 7)}
    return GridSearchCV(model, strengths, scoring="neg_log_loss", cv=FOLDS).fit(
        features[known], sex[known] == "M"
    )


def sex_agreement(
    model: GridSearchCV, features: np.ndarray, sex: np.ndarray, resamples: int, seed: int
) -> SexAgreement:
    """Classify brains whose sex was asked for, or is known.

    Args:
        model: of `learn_sex`.
        features: (n, d).
        sex: (n,) "F", "M" or missing.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    known = np.isin(sex, ("F", "M"))
    male = sex[known] == "M"
    if male.all() or not male.any():
        return SexAgreement(int(known.sum()), note="both sexes are needed, and one is missing")
    score = model.decision_function(features[known])
    right = (score > 0) == male
    draws = np.random.default_rng(seed)
    shares = []
    for one in (right[male], right[~male]):
        shares.append(one[draws.integers(0, len(one), (resamples, len(one)))].mean(axis=1))
    low, high = np.percentile(np.mean(shares, axis=0), [2.5, 97.5])
    return SexAgreement(
        n=int(known.sum()),
        balanced_accuracy=float((right[male].mean() + right[~male].mean()) / 2),
        low=float(low),
        high=float(high),
        auc=float(roc_auc_score(male, score)),
    )
