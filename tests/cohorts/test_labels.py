import numpy as np
import pytest

from brain_ldm.cohorts.labels import GROUPS, NAMES, group_index, volumes


def test_every_label_has_one_tissue():
    members = [n for group in GROUPS.values() for n in group]
    assert sorted(members) == sorted(NAMES)


def test_ventricles_are_the_papers_and_skull_is_background():
    order = list(GROUPS)
    labels = np.array([4, 5, 43, 44, 14, 15, 515, 3, 41])
    assert [order[i] for i in group_index(labels)] == [
        *["ventricle"] * 4,
        *["csf"] * 2,
        "background",
        "grey",
        "white",
    ]


@pytest.mark.parametrize("unknown", [1, -1, 9999])
def test_unknown_labels_are_named(unknown):
    with pytest.raises(ValueError, match=f"{unknown}"):
        group_index(np.array([0, unknown]))


def test_volumes_are_counted_in_mm3():
    labels = np.array([0, 4, 44, 2, 3, 3, 24, 515])
    assert volumes(labels, 8.0) == {"ventricular_volume": 16.0, "brain_volume": 24.0}
