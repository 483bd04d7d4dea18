"""Training the segmenter on label maps."""

import pytest
import torch

from brain_ldm.models import GridConfig, SavedSegmenter, Segmenter, open_model, save_model
from brain_ldm.networks.config import SegmenterConfig
from brain_ldm.training.config import DataConfig, SegmenterTask, TrainConfig, TrainerConfig
from brain_ldm.training.packed import Team
from brain_ldm.training.segmenter import SegmenterTraining, build, calibrate, volume_errors
from brain_ldm.training.synthesis import CLASSES

SMALL = SegmenterConfig([4, 4, 8, 8, 8, 4])


@pytest.fixture
def config(tiny_cohort, tmp_path):
    return TrainConfig(
        task=SegmenterTask(network=SMALL, coarse=0.5),
        data=DataConfig(cohort=str(tiny_cohort.root), cache=str(tmp_path / "caches")),
        trainer=TrainerConfig(max_steps=4),
    )


def test_rows_are_drawn_afresh_at_every_step_and_coarse_at_first(config, tiny_cohort):
    _, data = build(config, tiny_cohort)
    rows = data.make("train", Team())
    shapes = [tuple(rows[step, 0]["image"].shape) for step in range(4)]
    assert shapes == [(16, 16, 16)] * 2 + [(32, 32, 32)] * 2
    assert rows[3, 0]["shares"].shape == (len(CLASSES), 32, 32, 32)
    assert torch.equal(rows[3, 0]["image"], rows[3, 0]["image"])
    assert not torch.equal(rows[2, 0]["image"], rows[3, 0]["image"])


def test_validation_rows_are_the_cohorts_images_with_their_volumes(config, tiny_cohort):
    _, data = build(config, tiny_cohort)
    rows = data.make("val", Team())
    table = tiny_cohort.rows("val")
    assert len(rows) == len(table)
    item = rows[-1, 1]
    assert float(item["brain_volume"]) == pytest.approx(table["brain_volume"][1])
    expected = torch.from_numpy(tiny_cohort.read(table["participant_id"][1]))
    assert torch.allclose(item["image"].float(), expected, atol=1e-3)


def training():
    grid = GridConfig([8, 8, 8], torch.eye(4).tolist())
    model = Segmenter(SavedSegmenter(grid=grid, network=SMALL, classes=CLASSES))
    return SegmenterTraining(model, SegmenterTask(), seed=0, max_steps=10)


def test_the_loss_is_least_at_the_true_shares():
    shares = torch.rand(1, len(CLASSES), 6, 6, 6, generator=torch.Generator().manual_seed(0))
    shares = shares.softmax(dim=1)
    dice = training().dice
    at_truth = shares.log().requires_grad_()
    least = dice(at_truth, shares)
    assert float(least) == pytest.approx(0, abs=1e-5)
    for sharper in (0.5, 2.0, 4.0):
        assert dice(shares.log() * sharper, shares) > least + 0.01


def test_volumes_are_calibrated_on_images_of_training_rows(tiny_cohort, monkeypatch, tmp_path):
    """A network that counts along a line is right once that line is undone."""
    grid = GridConfig(**tiny_cohort.grid.to_dict())
    model = Segmenter(SavedSegmenter(grid=grid, network=SMALL, classes=CLASSES))
    rows = tiny_cohort.table.set_index("participant_id")
    by_image = {float(tiny_cohort.read(pid).sum()): rows.loc[pid] for pid in rows.index}
    seen = []

    def counted(images):
        row = by_image[float(images.sum())]
        seen.append(row["split"])
        ventricles = 3000 + 0.8 * row["ventricular_volume"]
        return {
            "ventricular_volume": torch.tensor([ventricles]).double(),
            "brain_volume": torch.tensor([5e5]).double(),  # tells nothing
        }

    monkeypatch.setattr(model, "counted", counted)
    calibrate(model, tiny_cohort)
    assert set(seen) == {"train"}
    assert model.config.calibration["ventricular_volume"] == pytest.approx([3000, 0.8], rel=1e-6)
    assert "brain_volume" not in model.config.calibration
    errors = volume_errors(model, tiny_cohort)
    assert errors["ventricular_volume_error"] == pytest.approx(0, abs=1e-3)
    assert errors["brain_volume_error"] > 1
    assert errors["volume_error"] == pytest.approx(errors["brain_volume_error"] / 2, abs=1e-3)
    held_out = tiny_cohort.rows("test").iloc[0]
    image = torch.from_numpy(tiny_cohort.read(held_out["participant_id"]))[None, None]
    found = model.volumes(image)
    assert float(found["ventricular_volume"]) == pytest.approx(held_out["ventricular_volume"])
    assert float(found["brain_volume"]) == 5e5

    save_model(model, tmp_path / "segmenter", "")
    again = open_model(tmp_path / "segmenter", Segmenter)
    assert again.config.calibration == model.config.calibration
