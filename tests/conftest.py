"""What many tests share: two threads, no display, no account, and a tiny cohort to work on."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")  # torch reads it when imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait shall not spin
os.environ["MPLBACKEND"] = "Agg"
os.environ["WANDB_MODE"] = "disabled"

import numpy as np
import pytest

from brain_ldm.cohorts.cohort import Cohort, open_cohort
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.cohorts.writer import CohortWriter

EDGE = 32  # voxels of 4 mm
SPLITS = ["train"] * 16 + ["val"] * 4 + ["test"] * 4


def nested_balls(index: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Row, image and labels (twice as fine) of a ventricle in white matter in grey matter."""
    random = np.random.default_rng(index)
    age = random.uniform(44, 82)
    head = 0.75 + 0.1 * random.random()
    ventricle = 0.15 + 0.2 * (age - 44) / 38 * random.uniform(0.8, 1.2)
    axis = np.linspace(-1, 1, 2 * EDGE)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    labels = np.zeros(radius.shape, np.int16)
    image = np.zeros(radius.shape, np.float32)
    for limit, (left, right), intensity in (
        (head, (3, 42), 0.5),
        (head - 0.15, (2, 41), 0.8),
        (ventricle, (4, 43), 0.15),
    ):
        inside = radius < limit
        labels[inside] = np.where(x[inside] < 0, left, right)
        image[inside] = intensity
    voxel = 8.0
    row = {
        "participant_id": f"sub-{index:03d}",
        "age": round(age, 2),
        "sex": "FM"[index % 2],
        "ventricular_volume": float(np.isin(labels, (4, 43)).sum() * voxel),
        "brain_volume": float(np.isin(labels, (2, 3, 41, 42)).sum() * voxel),
        "split": SPLITS[index],
    }
    return row, image.reshape(EDGE, 2, EDGE, 2, EDGE, 2).mean((1, 3, 5)), labels


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """24 ball-shaped brains of 32³ voxels: 16 to train, 4 to validate, 4 held out."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -2.0 * EDGE
    root = tmp_path_factory.mktemp("cohorts") / "tiny"
    grid = VoxelGrid((EDGE, EDGE, EDGE), affine)
    writer = CohortWriter(root, "Tiny", {"Name": "tests"}, grid, synthetic=False)
    for index in range(len(SPLITS)):
        row, image, labels = nested_balls(index)
        writer.add(row, image, labels)
    writer.finish()
    return open_cohort(root)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, tiny_cohort: Cohort) -> dict[str, Path]:
    """Folders of a segmenter and an autoencoder for `tiny_cohort`, with random weights."""
    import torch

    from brain_ldm.models import (
        Autoencoder,
        GridConfig,
        SavedAutoencoder,
        SavedSegmenter,
        Segmenter,
        save_model,
    )
    from brain_ldm.networks.config import AutoencoderConfig, SegmenterConfig
    from brain_ldm.training.synthesis import CLASSES

    torch.manual_seed(0)
    grid = GridConfig(**tiny_cohort.grid.to_dict())
    models = {
        "segmenter": Segmenter(
            SavedSegmenter(
                grid=grid, network=SegmenterConfig([4, 4, 8, 8, 8, 4]), classes=list(CLASSES)
            )
        ),
        "autoencoder": Autoencoder(
            SavedAutoencoder(
                grid=grid, network=AutoencoderConfig([4, 8], res_blocks=1, norm_groups=4)
            )
        ),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        save_model(model, root / name, f"# {name}\n")
    return {name: root / name for name in models}


@pytest.fixture(scope="session")
def trainings(tiny_cohort: Cohort, tiny_models: dict[str, Path]) -> dict[str, list[str]]:
    """Options of `train` on `tiny_cohort`: an autoencoder, a diffusion model, and a GAN."""
    common = [
        f"data.cohort={tiny_cohort.root}",
        "trainer.precision=32-true",
        "trainer.log_every=1",
        "trainer.checkpoint_every=4",
        "trainer.val_every=6",
        "trainer.max_steps=24",
        "pictures.count=0",
    ]
    return {
        "autoencoder": [
            "experiment=ae_demo",
            f"task.perceptual.weights={tiny_models['segmenter']}",
            "task.network.channels=[4,8]",
            "task.network.norm_groups=4",
            "task.discriminator.channels=4",
            "task.loss.adversarial_start=3",
            "task.augmentation.affine=0.5",
            *common,
        ],
        "diffusion": [
            "experiment=ldm_demo",
            f"task.autoencoder={tiny_models['autoencoder']}",
            "task.network.channels=[16]",
            "task.network.norm_groups=8",
            "task.network.head_channels=[16]",
            "task.encodings=2",
            "data.batch_size=4",
            *common,
        ],
        "lsgan": [
            "experiment=lsgan_demo",
            "task.network.latent_size=5",
            "task.network.channels=[4,8,8]",
            "task.network.norm_groups=4",
            "task.discriminator.channels=[4,8]",
            "data.batch_size=4",
            *common,
        ],
    }


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """Run `python -m brain_ldm.<name> …` in this process; give its exit code, stdout, stderr."""

    def run(name: str, *overrides: object) -> tuple[int, str, str]:
        import importlib

        door = importlib.import_module(f"brain_ldm.{name}")
        monkeypatch.setattr(sys, "argv", [name, *map(str, overrides)])
        capsys.readouterr()
        try:
            door.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def one_line(run_command: Callable) -> Callable:
    """Run a command that must fail by the user's mistake; give its one line."""

    def run(name: str, *overrides: object) -> str:
        code, _, err = run_command(name, *overrides)
        assert code == 2, err
        assert len(err.strip().splitlines()) == 1, err
        assert "Traceback" not in err
        return err.strip()

    return run


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
