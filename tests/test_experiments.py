"""Every experiment composes, builds and says only what differs from its defaults."""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.command import conf_folder, register, typed
from brain_ldm.models import (
    Autoencoder,
    BrainAge,
    Diffusion,
    Embedding,
    Generator,
    GridConfig,
    SavedAutoencoder,
    SavedBrainAge,
    SavedDiffusion,
    SavedEmbedding,
    SavedGenerator,
    SavedSegmenter,
    Segmenter,
)
from brain_ldm.networks.discriminator import build_discriminator
from brain_ldm.networks.generator import EncoderNetwork, VolumeDiscriminator
from brain_ldm.train import GROUPS
from brain_ldm.training.config import (
    AutoencoderTask,
    BrainAgeTask,
    DiffusionTask,
    EmbeddingTask,
    LSGANTask,
    SegmenterTask,
    TrainConfig,
    VAEGANTask,
)
from brain_ldm.training.synthesis import CLASSES

EXPERIMENTS = sorted(path.stem for path in (conf_folder() / "experiment").glob("*.yaml"))


def composed(*overrides):
    register("train", TrainConfig, GROUPS)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        return config


def build(task, grid):
    """The model of a task, without storage: shapes alone."""
    with torch.device("meta"):
        if isinstance(task, AutoencoderTask):
            build_discriminator(task.discriminator)
            return Autoencoder(SavedAutoencoder(grid=grid, network=task.network))
        if isinstance(task, LSGANTask | VAEGANTask):
            VolumeDiscriminator(task.discriminator, grid.shape)
            EncoderNetwork(task.network, grid.shape)
            return Generator(SavedGenerator(grid=grid, network=task.network))
        if isinstance(task, SegmenterTask):
            return Segmenter(SavedSegmenter(grid=grid, network=task.network, classes=CLASSES))
        if isinstance(task, BrainAgeTask):
            return BrainAge(SavedBrainAge(grid=grid, network=task.network))
        if isinstance(task, EmbeddingTask):
            return Embedding(SavedEmbedding(grid=grid, network=task.network))
        assert isinstance(task, DiffusionTask)
        autoencoder = typed(composed(f"experiment={Path(task.autoencoder).name}")).task
        covariates = [
            {"name": name, "unit": COVARIATES[name].unit, "low": 0.0, "high": 1.0}
            for name in task.covariates
        ]
        saved = SavedDiffusion(
            grid=grid,
            network=task.network,
            schedule=task.schedule,
            prediction=task.prediction,
            latent_scale=1.0,
            covariates=covariates,
        )
    return Diffusion(saved, build(autoencoder, grid))


RESOLUTIONS = {"demo": 4, "24gb": 2}  # mm, by part of the experiment's name


@functools.cache  # the paper's U-Net takes seconds even without storage
def built(name):
    config = typed(composed(f"experiment={name}"))
    resolution = next((mm for part, mm in RESOLUTIONS.items() if part in name), 1)
    grid = GridConfig(**paper_grid(resolution).to_dict())
    return config, build(config.task, grid)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes_and_builds(name):
    config, model = built(name)
    assert config.out == f"models/{name}"
    assert sum(p.numel() for p in model.parameters()) > 0


@pytest.mark.parametrize(("name", "millions"), [("ae_ukb", 13.77), ("ldm_cond", 553.17)])
def test_the_papers_networks_have_the_published_size(name, millions):
    _, model = built(name)
    count = sum(weight.numel() for weight in model.network.parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("name", ["ldm_cond", "ldm_24gb", "ldm_demo"])
def test_latents_have_the_papers_size_at_every_resolution(name):
    assert built(name)[1].autoencoder.latent_shape == (3, 20, 28, 20)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_leaf_repeats_its_default(name):
    path = conf_folder() / "experiment" / f"{name}.yaml"
    said = yaml.safe_load(path.read_text())
    base = []  # what it builds on: choices of groups, or another experiment
    for choice in said.pop("defaults"):
        if isinstance(choice, dict):
            base += [f"{key.removeprefix('override /')}={v}" for key, v in choice.items()]
        elif choice != "_self_":
            base.append(f"experiment={choice}")
    default = composed(*base)
    repeated = [
        key for key, value in leaves(said) if OmegaConf.select(default, key, default=None) == value
    ]
    assert not repeated


def leaves(node, path=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def option_fields():
    import brain_ldm.cohorts.config
    import brain_ldm.conversion.config
    import brain_ldm.diffusion.config
    import brain_ldm.evaluation.config
    import brain_ldm.measuring.config
    import brain_ldm.networks.config
    import brain_ldm.preprocessing.config
    import brain_ldm.sampling.config
    import brain_ldm.training.config

    for room in (
        "cohorts",
        "conversion",
        "diffusion",
        "evaluation",
        "measuring",
        "networks",
        "preprocessing",
        "sampling",
        "training",
    ):
        module = getattr(brain_ldm, room).config
        for value in vars(module).values():
            if dataclasses.is_dataclass(value) and value.__module__ == module.__name__:
                for field in dataclasses.fields(value):
                    yield value.__name__, field.name


def test_every_option_is_read_somewhere():
    package = conf_folder().parent / "brain_ldm"
    code = "\n".join(p.read_text() for p in package.rglob("*.py") if p.name != "config.py")
    words = set(re.findall(r"\w+", code))
    unread = {f"{owner}.{name}" for owner, name in option_fields() if name not in words}
    assert not unread


def test_every_group_file_is_used():
    """Each task by an experiment; trainers and loggers are the user's to choose, and compose."""
    chosen = [
        yaml.safe_load(path.read_text())["defaults"]
        for path in (conf_folder() / "experiment").glob("*.yaml")
    ]
    choices = [d for defaults in chosen for d in defaults if isinstance(d, dict)]
    tasks = {d["override /task"] for d in choices if "override /task" in d}
    assert tasks == {path.stem for path in (conf_folder() / "task").glob("*.yaml")}
    for group in ("trainer", "logger"):
        for path in (conf_folder() / group).glob("*.yaml"):
            typed(composed("experiment=ldm_demo", f"{group}={path.stem}"))
