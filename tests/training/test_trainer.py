"""Devices, strategies and precisions: what is there is used, what is not is one line."""

import os
import sys

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.strategies.launchers import subprocess_script
from omegaconf import OmegaConf
from safetensors.torch import load_file

from brain_ldm.training.launch import own_processes

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@needs_no_gpu
def test_devices_that_are_not_there(trainings, one_line, workplace):
    line = one_line("train", *trainings["diffusion"], "trainer=fsdp")
    assert "trainer.strategy=fsdp needs GPUs" in line and "trainer=ddp" in line
    for trainer in ("gpu", "ddp", "nodes"):
        line = one_line("train", *trainings["diffusion"], f"trainer={trainer}")
        assert "trainer.accelerator=gpu: there is no GPU here; use trainer=cpu" in line
    assert not list(workplace.glob("models/*"))


def test_nonsense(trainings, one_line, workplace):
    for option in ("max_steps", "devices", "nodes", "accumulate", "val_every", "checkpoint_every"):
        line = one_line("train", *trainings["diffusion"], f"trainer.{option}=0")
        assert f"trainer.{option} is 0" in line
    for option, value in (
        ("data.batch_size", 0),
        ("data.workers", -1),
        ("seed", -1),
        ("task.encodings", 0),
        ("pictures.count", -1),
    ):
        line = one_line("train", *trainings["diffusion"], f"{option}={value}")
        assert f"{option} is {value}" in line
    pictures = ["pictures.count=1", "pictures.steps=0"]
    assert "pictures.steps" in one_line("train", *trainings["diffusion"], *pictures)
    line = one_line("train", *trainings["autoencoder"], "task.best=psnr")
    assert "task.best is 'psnr'" in line and "reconstruction" in line
    assert not list(workplace.iterdir())  # found before any work, caches included
    assert "trainer.precision" in one_line(
        "train", *trainings["diffusion"], "trainer.precision=8-bit"
    )


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion"])
def test_other_precisions_train(kind, trainings, run_command, workplace):
    for precision in ("bf16-mixed", "bf16-true"):
        options = [*trainings[kind], f"trainer.precision={precision}", "trainer.max_steps=5"]
        code, _, err = run_command("train", *options, f"out={precision}")
        assert code == 0, err
        weights = load_file(f"{precision}/weights.safetensors")
        assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights.values())
    if kind == "diffusion":  # an average that bf16 has not rounded
        assert any(not torch.equal(w, w.bfloat16().float()) for w in weights.values())


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion"])
def test_checkpointed_and_compiled_training_learn_the_same(
    kind, trainings, run_command, workplace, monkeypatch
):
    compiled = []
    original = torch.compile

    def eager(function, **options):
        compiled.append(function)
        return original(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", eager)
    models = {}
    for name, extra in {
        "plain": [],
        "checkpointed": ["trainer.activation_checkpointing=true"],
        "compiled": ["trainer.compile=true"],
    }.items():
        options = [*trainings[kind], "trainer.max_steps=4", *extra, f"out={name}"]
        code, _, err = run_command("train", *options)
        assert code == 0, err
        models[name] = load_file(f"{name}/weights.safetensors")
        assert bool(compiled) == (name == "compiled")
    for name, weight in models["plain"].items():
        assert torch.equal(models["checkpointed"][name], weight), name
        assert torch.allclose(models["compiled"][name], weight, atol=2e-3), name


def test_further_ranks_get_the_options_of_the_job_alone(monkeypatch):
    """Not the command line of the sweep, and nothing of one job is left for the next."""
    monkeypatch.setattr(sys, "argv", ["train", "-m", "task.lr=1,2"])
    hydra = {
        "runtime": {"cwd": "/somewhere"},
        "overrides": {"task": ["experiment=ldm_demo", "task.lr=2", "out=models/x"]},
    }
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra))
    before, original = dict(os.environ), subprocess_script._hydra_subprocess_cmd
    with own_processes("models/x/1"):
        command, folder = subprocess_script._hydra_subprocess_cmd(1)
        os.environ.update(LOCAL_RANK="0", WORLD_SIZE="2", MASTER_PORT="1234")
    assert command[1:] == [
        "-m",
        "brain_ldm.train",
        "experiment=ldm_demo",
        "task.lr=2",
        "out='models/x/1'",
    ]
    assert folder == "/somewhere"
    assert dict(os.environ) == before
    assert subprocess_script._hydra_subprocess_cmd is original
