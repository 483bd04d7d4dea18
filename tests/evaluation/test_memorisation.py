"""Planted copies are found, brains that are none pass at the stated rate, and numbers are right."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from brain_ldm.errors import InputError
from brain_ldm.evaluation.memorisation import (
    audit,
    detectable_share,
    exceedance_p,
    nearest,
    relative_gap,
    rows_beyond,
)

CENTRES = np.random.default_rng(99).normal(size=(5, 12))


def people(n: int, seed: object, spread: float = 0.7) -> np.ndarray:
    """Vectors of n brains that come in five kinds."""
    rng = np.random.default_rng(seed)
    return CENTRES[rng.integers(0, 5, n)] + spread * rng.normal(size=(n, 12))


def copies(train: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n copies of training brains, with a little noise."""
    rng = np.random.default_rng(seed)
    return train[rng.integers(0, len(train), n)] + 0.02 * rng.normal(size=(n, train.shape[1]))


def similarities(queries: np.ndarray, references: np.ndarray, measure: str) -> np.ndarray:
    if measure == "pearson":
        return np.corrcoef(queries, references)[: len(queries), len(queries) :]
    return np.array([[a @ b / np.sqrt(a @ a * (b @ b)) for b in references] for a in queries])


@pytest.mark.parametrize("measure", ["pearson", "cosine"])
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_the_closest_in_blocks_is_the_closest(measure, block):
    queries, references = people(9, 0), people(14, 1)
    table = similarities(queries, references, measure)
    rows, found = nearest(queries, references, None, 3, measure, block)
    assert rows.tolist() == table.argmax(1).tolist()
    assert found == pytest.approx(np.sort(table)[:, :-4:-1], abs=1e-6)


@pytest.mark.parametrize("block", [4, 1000])
def test_of_each_person_only_the_closest_scan_counts(block):
    queries, references = people(9, 0), people(14, 1)
    whose = np.array(list("abcabcabcabcda"))
    table = similarities(queries, references, "pearson")
    rows, found = nearest(queries, references, whose, 9, block=block)
    assert rows.tolist() == table.argmax(1).tolist()
    expected = [sorted((max(row[whose == p]) for p in "abcd"), reverse=True) for row in table]
    assert found == pytest.approx(np.array(expected), abs=1e-6)


def test_the_gap_follows_its_law_in_any_dimension():
    """Points that lie evenly around the query, at any scale."""
    rng = np.random.default_rng(0)
    for dimensions in (2, 15):
        radii = np.sort(rng.random((4000, 300)) ** (1 / dimensions), axis=1)[:, :10]
        for scale in (1.0, 0.1):
            gaps = relative_gap(1 - (scale * radii) ** 2 / 2)
            assert stats.kstest(gaps, stats.f(2, 16).cdf).pvalue > 0.01
    by_hand = np.log(2 / 1) / np.mean([2 * np.log(3 / 2), 3 * np.log(5 / 3)])
    distances = np.array([[0.1, 0.2, 0.3, 0.5]])
    assert relative_gap(1 - distances**2 / 2) == pytest.approx([by_hand])


def test_volumes_are_flattened_and_may_be_memory_mapped(tmp_path):
    volumes = np.random.default_rng(0).random((6, 3, 4, 5)).astype(np.float16)
    np.save(tmp_path / "v.npy", volumes)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    flat = volumes.reshape(6, -1).astype(float)
    rows, found = nearest(mapped, 2 * mapped + 1, block=2)  # Pearson's feels neither
    assert rows.tolist() == list(range(6))
    assert found[:, 0] == pytest.approx(np.ones(6), abs=1e-3)
    assert nearest(mapped, mapped[:1])[1][:, 0] == pytest.approx(
        similarities(flat, flat[:1], "pearson")[:, 0], abs=1e-5
    )


def test_the_chance_of_so_many_flagged_is_that_of_any_order():
    """Against scipy's other form of the law, and against shuffled orders."""
    n_synthetic, n_held_out, beyond = 30, 45, 3
    rng = np.random.default_rng(0)
    drawn = rng.random((20000, n_synthetic + n_held_out))
    threshold = np.sort(drawn[:, :n_held_out])[:, -beyond]
    counts = (drawn[:, n_held_out:] > threshold[:, None]).sum(1)
    for flagged in (0, 1, 3, 6, 10):
        p = exceedance_p(flagged, n_synthetic, n_held_out, beyond)
        law = stats.nhypergeom(n_synthetic + n_held_out, n_synthetic, beyond)
        assert p == pytest.approx(law.sf(flagged - 1), rel=1e-6)
        assert p == pytest.approx((counts >= flagged).mean(), abs=0.015)


def test_a_further_real_brain_is_beyond_the_threshold_no_more_often_than_stated():
    assert [rows_beyond(n, 0.95) for n in (18, 19, 38, 39, 99)] == [0, 1, 1, 2, 5]
    assert all(rows_beyond(n, 0.9) / (n + 1) <= 0.1 for n in range(200))


def test_dars_numbers_are_those_of_a_plain_loop():
    train, held_out, synthetic = people(60, 1), people(25, 2), people(30, 3)
    synthetic[:4] = copies(train, 4, 0)
    found = audit(train, held_out, synthetic, block=7).dar
    closest = similarities(train, held_out, "pearson").max(1)
    threshold = np.percentile(closest, 95)
    assert found.threshold == pytest.approx(threshold, abs=1e-6)
    for brains, share, equal in (
        (synthetic, found.synthetic, found.equal_synthetic),
        (held_out, found.held_out, found.equal_held_out),
    ):
        above = similarities(brains, train, "pearson") > threshold
        assert share.flagged == above.any(1).sum()
        rng = np.random.default_rng(0)
        choices = [rng.permutation(60)[:25] for _ in range(4000)]
        assert equal == pytest.approx(
            np.mean([above[:, chosen].any(1).mean() for chosen in choices]), abs=0.01
        )
    k = found.synthetic.flagged
    interval = stats.beta.ppf([0.025, 0.975], [k, k + 1], [31 - k, 30 - k])
    assert (found.synthetic.low, found.synthetic.high) == pytest.approx(tuple(interval))


def test_copies_are_found_and_shown_with_their_originals():
    train = people(80, 1)
    synthetic = people(40, 3)
    originals = np.arange(40)
    synthetic[::2] = (train[originals] + 0.02 * people(40, 4))[::2]  # every other one
    found = audit(train, people(50, 2), synthetic)
    assert found.copies and found.verdict.startswith("copies")
    assert found.similarity.synthetic.low > 0.3 > 0.05 > found.similarity.held_out.share
    assert found.gap.synthetic.flagged >= 20
    assert len(found.closest) == 8
    for synthetic_row, training_row, similarity in found.closest:
        assert synthetic_row == training_row and synthetic_row % 2 == 0
        assert similarity > 0.99
    assert json.loads(json.dumps(dataclasses.asdict(found)))["n_synthetic"] == 40


def test_wrong_alarms_are_no_more_frequent_than_stated():
    """Also where there are ten times as many training brains, on which Dar's count goes wrong."""
    for n_train, n_held_out, runs in ((60, 40, 60), (400, 40, 40)):
        found = [
            audit(people(n_train, (s, 1)), people(n_held_out, (s, 2)), people(50, (s, 3)))
            for s in range(runs)
        ]
        limit = stats.binom.ppf(0.999, runs, 0.05)
        assert sum(f.copies for f in found) <= limit
        for name in ("similarity", "gap"):
            assert sum(getattr(f, name).p <= 0.05 for f in found) <= limit
            assert np.mean([getattr(f, name).synthetic.share for f in found]) < 0.06
            assert all(getattr(f, name).held_out.share <= 0.05 for f in found)
    assert np.mean([f.dar.synthetic.share for f in found]) > 0.15
    assert np.mean([f.dar.held_out.share for f in found]) > 0.15
    assert np.mean([f.dar.equal_synthetic for f in found]) == pytest.approx(0.05, abs=0.02)


def test_average_brains_are_close_to_training_brains_but_no_copies():
    found = audit(people(80, 1), people(60, 2), people(60, 3, spread=0.3))
    assert found.similarity.p < 0.001
    assert found.gap.p > 0.05
    assert found.copies is False
    assert "not to a single one" in found.verdict


def test_brains_smoother_than_real_ones_are_no_copies():
    """Real ones are anatomy and noise; synthetic ones have the same anatomy and no noise."""
    runs, alarms, closer = 25, 0, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        basis = rng.normal(size=(12, 150))
        train, held_out, synthetic = (people(n, (seed, n)) @ basis for n in (200, 91, 92))
        train += 3 * rng.normal(size=train.shape)
        held_out += 3 * rng.normal(size=held_out.shape)
        found = audit(train, held_out, synthetic)
        alarms += found.copies
        closer += found.similarity.p < 0.001
    assert closer == runs
    assert alarms <= stats.binom.ppf(0.999, runs, 0.05)


def test_a_copied_person_stands_out_also_when_scanned_twice():
    train, held_out, synthetic = people(60, 1), people(60, 2), people(40, 3)
    again = np.random.default_rng(0).permutation(60)
    both = np.concatenate([train, train[again] + 0.03 * people(60, 4)])
    synthetic[:20] = train[:20] + 0.03 * people(20, 5)
    told = audit(both, held_out, synthetic, people=np.concatenate([np.arange(60), again]))
    assert told.copies
    assert told.gap.median_synthetic > 2 * audit(both, held_out, synthetic).gap.median_synthetic


def test_the_detectable_share_is_detected_four_times_in_five():
    share = detectable_share(60, 40, rows_beyond(40, 0.95))
    assert 0.05 < share < 0.5
    runs, caught = 50, 0
    for seed in range(runs):
        train, synthetic = people(60, (seed, 1)), people(60, (seed, 3))
        which = np.random.default_rng(seed).random(60) < share
        synthetic[which] = copies(train, 60, seed)[which]
        caught += audit(train, people(40, (seed, 2)), synthetic).copies
    assert caught >= stats.binom.ppf(0.001, runs, 0.8)
    assert caught < runs  # it is no far larger share than is needed
    assert detectable_share(600, 400, rows_beyond(400, 0.95)) < share


def test_planted_copies_say_how_many_copies_are_recognised():
    train, held_out, synthetic = people(60, 1), people(60, 2), people(60, 3)
    exact, vague = copies(train, 40, 0), people(40, 5)
    all_told = audit(train, held_out, synthetic, exact)
    assert all_told.recognised.flagged == 40
    assert all_told.detectable_share == audit(train, held_out, synthetic).detectable_share
    half_told = audit(train, held_out, synthetic, np.concatenate([exact, vague]))
    share = half_told.recognised.share
    assert 0.5 <= share < 0.6  # of the vague ones a few by chance
    assert half_told.detectable_share == pytest.approx(all_told.detectable_share / share)
    blind = audit(train, held_out, synthetic, vague)
    assert blind.detectable_share is None
    assert "copies would not be seen" in blind.verdict


def test_too_few_brains_give_a_note_and_no_verdict():
    train, synthetic = people(30, 1), people(30, 3)
    found = audit(train, people(18, 2), synthetic)
    assert (found.copies, found.verdict, found.dar) == (None, None, None)
    assert found.note == "only 18 held-out brains; at least 19 give a threshold"
    assert audit(train, people(19, 2), synthetic).copies is False
    # Whom each resembles most can be told all the same.
    assert found.closest == audit(train, people(19, 2), synthetic).closest
    assert "2 people" in audit(train[:2], people(19, 2), synthetic).note
    scans = np.repeat([0, 1], 15)
    assert "2 people" in audit(train, people(19, 2), synthetic, people=scans).note
    assert "0 synthetic" in audit(train, people(19, 2), synthetic[:0]).note
    assert "only 1 synthetic" in audit(train, people(9, 2), synthetic[:1], level=0.9).note


def test_rows_that_are_like_nothing_are_named():
    train, held_out, synthetic = people(30, 1), people(30, 2), people(30, 3)
    synthetic[21] = 0.1
    with pytest.raises(InputError, match="synthetic brain 21 "):
        audit(train, held_out, synthetic, block=8)
    with pytest.raises(InputError, match="row 21 "):
        nearest(train, synthetic, block=8)
    synthetic[21] = np.nan
    with pytest.raises(InputError, match="synthetic brain 21 "):
        audit(train, held_out, synthetic, measure="cosine")
    with pytest.raises(InputError, match="12 of a training brain, 12 of a held-out brain, 11"):
        audit(train, held_out, synthetic[:, :11])
