"""Whether synthetic brains are copies of training brains.

Dar et al. 2023 (arXiv 2307.01148): for each training volume the similarity of its closest held-out
real one; a synthetic volume above the 95th percentile of those, against any training volume, is a
candidate copy. That number is reported, but it does not carry the verdict: its threshold comes from
the closest of all held-out volumes and is held against the closest of all training volumes, and the
closest of more is closer. With ten times as many training as held-out volumes it calls a large
share of brains copies that are none.

The verdict asks instead what a held-out real brain, which cannot be a copy, shows against the very
same training brains. Two quantities of each brain:

- similarity to its closest training brain. Synthetic brains that are smooth or average have high
  ones without being copies, therefore also
- the gap: how far its closest training brain stands out from the next ones (`relative_gap`). A
  copy's original is far closer than any other; a brain that is close to all alike has the gap of a
  real one, however smooth it is. (Distances to training over distances to held-out brains, which
  suggest themselves, scatter more among smooth brains than among real ones, whose noise keeps all
  distances alike: they raised the alarm over brains that were no copies.)

In each, a brain is flagged where it goes beyond the threshold that 95 % of held-out brains keep,
and the count of flagged synthetic brains is tested against the exact distribution that it has if
synthetic and held-out brains are exchangeable (`exceedance_p`). Synthetic brains count as copies
where both tests reject: the chance of a wrong alarm is then at most that of either.

What the verdict rests on: held-out brains come from the same people as training brains do, and
synthetic ones were drawn for the covariates of held-out ones. A decoder's softness moves synthetic
brains away from real ones and hides copies: give reconstructions of the real brains, or latents.

Brains are compared as vectors: embeddings (which forgive a flip or a shift if they were taught
to), flattened latents, or flattened voxels (best at 4 mm: all pairs are compared). How many copies
these tell shows only on known ones: plant some, such as changed or reconstructed training brains.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import optimize, stats

from brain_ldm.errors import InputError

# Pearson's correlation (Dar et al.) removes each vector's own mean first, cosine does not.
Measure = Literal["pearson", "cosine"]
SIGNIFICANCE = 0.05  # of the verdict: the chance to call brains copies that are none, at most
POWER = 0.8  # with which the detectable share is found, at least
CONFIDENCE = 0.95  # of the intervals of shares
NEAR_ZERO = 1e-12  # a distance that is none
NEIGHBOURS = 10  # closest training brains that a gap is told from; our choice


@dataclass(frozen=True)
class Share:
    """How many of `n` brains are flagged, with the Clopper-Pearson 95 % interval of the share."""

    n: int
    flagged: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Synthetic against held-out brains in one quantity.

    `threshold` is what all but `1 - level` of held-out brains keep. `held_out` counts each held-out
    brain against the threshold of all others; that is the stated rate of false positives, and by
    construction at most `1 - level`.
    """

    threshold: float
    synthetic: Share
    held_out: Share
    median_synthetic: float
    median_held_out: float
    p: float


@dataclass(frozen=True)
class Dar:
    """The count of Dar et al. 2023, for synthetic brains and for held-out ones, which are none.

    `threshold` is the similarity that `level` of training brains have at most to their closest
    held-out one. The `equal` shares are what the counts become when only as many training brains
    are looked at as there are held-out ones: the mean over all choices of them.
    """

    threshold: float
    synthetic: Share
    held_out: Share
    equal_synthetic: float
    equal_held_out: float


@dataclass(frozen=True)
class Audit:
    """Verdict on copying with its error rates; None where the brains are too few, and `note` why.

    `false_positive_rate` bounds how often brains without copies are called copies. `recognised`
    counts the planted copies that are flagged in both quantities, None if none were planted.
    `detectable_share` is the smallest share of copies among the synthetic brains that is found at
    least four times in five, if copies are recognised as often as planted ones, or always where
    none were planted; None where even copies alone would not be found. `closest` lists (synthetic
    row, training row, similarity) of the closest pairs, the closest first, one for each synthetic
    brain.
    """

    n_train: int
    n_held_out: int
    n_synthetic: int
    measure: str
    level: float
    copies: bool | None = None
    verdict: str | None = None
    false_positive_rate: float | None = None
    recognised: Share | None = None
    detectable_share: float | None = None
    similarity: Comparison | None = None
    gap: Comparison | None = None
    dar: Dar | None = None
    closest: tuple[tuple[int, int, float], ...] = ()
    note: str | None = None


def audit(
    train: np.ndarray,
    held_out: np.ndarray,
    synthetic: np.ndarray,
    planted: np.ndarray | None = None,
    people: np.ndarray | None = None,
    measure: Measure = "pearson",
    level: float = 0.95,
    shown: int = 8,
    block: int = 256,
    significance: float = SIGNIFICANCE,
) -> Audit:
    """Judge whether synthetic brains are copies of training brains.

    Args:
        train, held_out, synthetic: (n, ...) each, in any numbers; a row a brain, flattened here.
            They may be memory-mapped: `block` rows at a time are read.
        planted: (n, ...) known copies of training brains, to see how many are recognised.
        people: (n,) whose scan each training brain is. Only the closest scan of each person counts,
            or else a copied brain would not stand out where its person was scanned twice. None if
            all are different people.
        measure: of similarity.
        level: share of held-out brains that a threshold leaves unflagged.
        shown: closest pairs to return.
        block: rows that are compared at once.
        significance: of the verdict, the chance of a false alarm at most.

    Raises:
        InputError: rows differ in size, or one is constant or not finite and has no similarity.
        ValueError: an unknown measure, or a level outside 0..1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a share between 0 and 1")
    sets = {"training": train, "held-out": held_out, "synthetic": synthetic}
    counts = [len(rows) for rows in sets.values()]
    if planted is not None and len(planted):
        sets["planted"] = planted
    found = Audit(*counts, measure, level)
    beyond = rows_beyond(counts[1], level)
    persons = len(train) if people is None else len(np.unique(people))
    note = _too_few(persons, counts, beyond, level, significance)
    if not counts[0] or not counts[2]:
        return replace(found, note=note)
    sizes = {name: np.asarray(rows[0]).size for name, rows in sets.items() if len(rows)}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{size} of a {name} brain" for name, size in sizes.items())
        raise InputError(f"brains of different sizes cannot be compared: {said}")
    for name, rows in sets.items():  # before the long work, and by name
        for start in range(0, len(rows), block):
            _unit(rows[start : start + block], measure, start, f"{name} brain")

    options = {"measure": measure, "block": block}

    def against_train(brains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Similarity to the closest training brain, and its gap, (n,) each."""
        near = nearest(brains, train, people, NEIGHBOURS, **options)[1]
        return near[:, 0], relative_gap(near)

    rows, near = nearest(synthetic, train, people, NEIGHBOURS, **options)
    to_train = near[:, 0]
    first = np.argsort(-to_train, kind="stable")[:shown]
    closest = tuple((int(s), int(rows[s]), float(to_train[s])) for s in first)
    if note is not None:
        return replace(found, note=note, closest=closest)
    gaps = relative_gap(near)
    real_to_train, real_gaps = against_train(held_out)
    similarity = _compared(to_train, real_to_train, level)
    gap = _compared(gaps, real_gaps, level)
    recognised, rate = None, 1.0
    if "planted" in sets:
        of_copies, copied = against_train(planted)
        told = (of_copies > similarity.threshold) & (copied > gap.threshold)
        recognised = _share(int(told.sum()), len(told))
        rate = recognised.share
    copies = max(similarity.p, gap.p) <= significance
    detectable = detectable_share(counts[2], counts[1], beyond, rate, significance)
    return replace(
        found,
        copies=copies,
        verdict=_verdict(copies, similarity, gap, detectable, significance),
        false_positive_rate=significance,
        recognised=recognised,
        detectable_share=detectable,
        similarity=similarity,
        gap=gap,
        dar=_dar(train, held_out, synthetic, level, options),
        closest=closest,
    )


def nearest(
    queries: np.ndarray,
    references: np.ndarray,
    people: np.ndarray | None = None,
    count: int = 1,
    measure: Measure = "pearson",
    block: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the closest references of each query.

    Args:
        queries, references: (n, ...) and (m, ...); rows are flattened.
        people: (m,) whose scan each reference is; None if all are different people.
        count: how many people's closest scans to give; fewer where there are fewer people.
        measure: of similarity.
        block: rows of each that are compared at once.

    Returns:
        Row number of the closest reference, int (n,), and similarities to the closest scans of the
        `count` closest people, the closest first, float (n, count).

    Raises:
        InputError: a row is constant or not finite.
    """
    whose = (
        np.arange(len(references)) if people is None else np.unique(people, return_inverse=True)[1]
    )
    by_person = np.argsort(whose, kind="stable")
    firsts = np.flatnonzero(np.diff(whose[by_person], prepend=-1))
    count = min(count, len(firsts))
    index, best = np.zeros(len(queries), int), np.zeros((len(queries), count))
    for q, found in _rows(queries, references, measure, block):
        index[q] = found.argmax(1)
        persons = np.maximum.reduceat(found[:, by_person], firsts, axis=1)
        best[q] = -np.sort(-persons, axis=1)[:, :count]
    return index, best


def relative_gap(similarities: np.ndarray) -> np.ndarray:
    """Return how far the closest neighbour stands out from the next ones, (n,).

    With r_k the distance to the k-th closest of points that lie evenly in m dimensions, the numbers
    k ln(r_{k+1} / r_k) are independent and exponential with mean 1 / m (they are what Levina &
    Bickel 2004 estimate m from). The first of them over the mean of the others depends neither on m
    nor on the scale: it follows F(2, 2 (count - 2)). Large where the closest is far closer than the
    next ones foretell.

    Args:
        similarities: (n, count) of unit vectors to their neighbours, the closest first; 3 or more.
    """
    distances = np.maximum(np.sqrt(2 - 2 * similarities), NEAR_ZERO)
    steps = np.diff(np.log(distances), axis=1) * np.arange(1, distances.shape[1])
    return steps[:, 0] / np.maximum(steps[:, 1:].mean(1), NEAR_ZERO)


def exceedance_p(flagged: int, n_synthetic: int, n_held_out: int, beyond: int) -> float:
    """Return the chance of so many flagged synthetic brains, or more, if none is a copy.

    The threshold is the value of the held-out brain that is `beyond`-th from the top. If synthetic
    and held-out values are draws from one distribution, whatever it is, the share of synthetic
    values above it is Beta(beyond, n_held_out + 1 - beyond), so their number is beta-binomial
    (the exceedance test, e.g. Balakrishnan & Ng 2006, Precedence-Type Tests and Applications).
    Unlike Fisher's test it knows that the threshold was chosen by the held-out values.
    """
    null = stats.betabinom(n_synthetic, beyond, n_held_out + 1 - beyond)
    return float(min(null.sf(flagged - 1), 1.0))


def detectable_share(
    n_synthetic: int,
    n_held_out: int,
    beyond: int,
    recognised: float = 1.0,
    significance: float = SIGNIFICANCE,
) -> float | None:
    """Return the smallest share of copies that both tests find together with 80 % power.

    Copies are taken to be flagged with the probability `recognised`, or else as other brains are:
    as often as held-out ones. Each test is asked for 90 %, so that both together have 80 % however
    they depend on each other. None where no share is enough.
    """
    # Shares beyond the threshold that chance gives, equally likely each.
    chance = stats.beta.ppf((np.arange(500) + 0.5) / 500, beyond, n_held_out + 1 - beyond)
    counts = np.arange(n_synthetic + 1)
    chances = stats.betabinom(n_synthetic, beyond, n_held_out + 1 - beyond).pmf(counts)
    null = np.cumsum(chances[::-1])[::-1]  # of so many or more
    enough = int(np.argmax(null <= significance))  # there is one, or `_too_few` has said so

    def lacking(share: float) -> float:
        flagged = share + (1 - share) * chance
        return stats.binom.sf(enough - 1, n_synthetic, flagged).mean() - (1 + POWER) / 2

    if lacking(recognised) < 0:
        return None
    return float(optimize.brentq(lacking, 0, recognised)) / recognised


def rows_beyond(n_held_out: int, level: float) -> int:
    """Return how many held-out brains lie at or beyond the threshold; 0 where they are too few.

    The largest number at which one more brain like them is flagged with probability `1 - level` at
    most.
    """
    return math.floor(round((1 - level) * (n_held_out + 1), 9))


def _too_few(
    persons: int, counts: list[int], beyond: int, level: float, significance: float
) -> str | None:
    """Say why so few brains, the training ones of so many persons, allow no verdict, or None."""
    _, n_held_out, n_synthetic = counts
    if persons < 3 or not n_synthetic:
        return (
            f"training brains of {persons} people and {n_synthetic} synthetic ones; at least 3 and "
            "1 are needed"
        )
    if beyond == 0:
        least = math.ceil(round(1 / (1 - level), 9)) - 1
        return f"only {n_held_out} held-out brains; at least {least} give a threshold"
    if exceedance_p(n_synthetic, n_synthetic, n_held_out, beyond) > significance:
        return f"only {n_synthetic} synthetic brains; were all copies, it could be chance"
    return None


def _rows(
    queries: np.ndarray, references: np.ndarray, measure: Measure, block: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Give similarities of some queries at a time to all references: rows of queries, (b, m)."""
    for start in range(0, len(queries), block):
        q = slice(start, start + block)
        units = _unit(queries[q], measure, start)
        found = np.empty((len(units), len(references)))
        for other in range(0, len(references), block):
            r = slice(other, other + block)
            found[:, r] = units @ _unit(references[r], measure, other).T
        yield q, np.clip(found, -1, 1)


def _unit(rows: np.ndarray, measure: Measure, start: int, name: str = "row") -> np.ndarray:
    """Return rows as vectors of length 1, float32 (n, D); the first is number `start`."""
    flat = np.asarray(rows, np.float32).reshape(len(rows), -1)
    with np.errstate(invalid="ignore"):
        match measure:
            case "pearson":
                # Not told from what the mean leaves, which rounding can make other than 0.
                wrong = ~(np.ptp(flat, 1) > 0)
                flat = flat - flat.mean(1, keepdims=True)
            case "cosine":
                wrong = ~flat.any(1)
            case _:
                raise ValueError(f"measure is {measure}: give pearson or cosine")
    wrong |= ~np.isfinite(flat).all(1)
    if wrong.any():
        raise InputError(
            f"{name} {start + int(wrong.argmax())} (from 0) is constant or not finite, and so like "
            "nothing: leave it out"
        )
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _compared(synthetic: np.ndarray, held_out: np.ndarray, level: float) -> Comparison:
    """Compare values whose high ones are suspicious."""
    n = len(held_out)
    beyond, others = rows_beyond(n, level), rows_beyond(n - 1, level)
    order = np.sort(held_out)[::-1]
    threshold = order[beyond - 1]
    flagged = int((synthetic > threshold).sum())
    false = 0
    if others:
        # Without a brain that is itself beyond it, the threshold lies one value lower.
        lower = np.where(held_out >= order[others - 1], order[others], order[others - 1])
        false = int((held_out > lower).sum())
    return Comparison(
        threshold=float(threshold),
        synthetic=_share(flagged, len(synthetic)),
        held_out=_share(false, n),
        median_synthetic=float(np.median(synthetic)),
        median_held_out=float(np.median(held_out)),
        p=exceedance_p(flagged, len(synthetic), n, beyond),
    )


def _share(flagged: int, n: int) -> Share:
    interval = stats.binomtest(flagged, n).proportion_ci(CONFIDENCE, method="exact")
    return Share(n, flagged, flagged / n, float(interval.low), float(interval.high))


def _dar(
    train: np.ndarray, held_out: np.ndarray, synthetic: np.ndarray, level: float, options: dict
) -> Dar:
    threshold = float(np.quantile(nearest(train, held_out, **options)[1][:, 0], level))
    seen = min(len(held_out), len(train))

    def counted(brains: np.ndarray) -> tuple[Share, float]:
        above = np.zeros(len(brains), int)
        for q, found in _rows(brains, train, **options):
            above[q] = (found > threshold).sum(1)
        # The chance that `seen` training brains, drawn without replacement, hold one of those.
        equal = stats.hypergeom.sf(0, len(train), above, seen).mean()
        return _share(int((above > 0).sum()), len(brains)), float(equal)

    (fake, equal_fake), (real, equal_real) = counted(synthetic), counted(held_out)
    return Dar(threshold, fake, real, equal_fake, equal_real)


def _verdict(
    copies: bool,
    similarity: Comparison,
    gap: Comparison,
    detectable: float | None,
    significance: float,
) -> str:
    """Put the verdict in words."""
    share, expected = similarity.synthetic.share, similarity.held_out.share
    if copies:
        return (
            f"copies: {share:.0%} of the synthetic brains are closer to a training brain than "
            f"{1 - expected:.0%} of held-out brains are (p = {similarity.p:.2g}), and "
            f"in {gap.synthetic.share:.0%} it stands out from their next ones (p = {gap.p:.2g})"
        )
    if detectable is None:
        return (
            "no sign of copying, but copies would not be seen: too few planted ones are recognised"
        )
    missed = f"could miss a copied share below {detectable:.0%}"
    if similarity.p <= significance:
        return (
            f"no sign of copying at this n ({missed}); synthetic brains are closer to training "
            "brains than held-out ones are, but not to a single one"
        )
    return f"no sign of copying at this n ({missed})"
