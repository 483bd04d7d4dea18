"""How many brains an hour, and what 100,000 of full size would take on one H100.

Measured here: a model draws brains with DDIM-50 and writes them, by batch size and number of
writing processes. On a CPU the time in which the loop waits for a batch is that in which the
networks compute; on a GPU it is the least of it. Without `--model`'s folder the networks of
experiment=ldm_demo get random weights: as fast, but their images are noise, which takes longer to
encode and more room than brains do.

On a GPU the published networks draw at 160×224×160 too, with random weights, one batch of each size
after one to warm up; nothing is written. With `--full-on-cpu` one brain is drawn on a CPU, whose
memory is all that the process had.

Counted, not measured: operations of the published networks at 160×224×160 on tensors without
data, 2 a multiplication with its addition, by torch's counter. Divided by the card's peak and by a
utilisation that is an assumption, they give hours. Launches, norms and memory traffic are not
counted: they are in the utilisation.

Encoding is measured on one core with the MNI152 brain of 1 mm and a little noise (sd .01).

Run: make bench, or python benchmarks/sampling.py --brains 64 --batches 4 16 --writers 0 1
"""

import argparse
import platform
import resource
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from nilearn.datasets import load_mni152_template
from nilearn.image import resample_img
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from brain_ldm.cohorts.covariates import COVARIATES
from brain_ldm.cohorts.grid import paper_grid
from brain_ldm.cohorts.writer import STORAGE, CohortWriter
from brain_ldm.command import conf_folder
from brain_ldm.device import open_device
from brain_ldm.diffusion.config import DDIMConfig
from brain_ldm.models import (
    Autoencoder,
    Diffusion,
    GridConfig,
    SavedAutoencoder,
    SavedDiffusion,
    open_model,
)
from brain_ldm.networks.config import AutoencoderConfig, UNetConfig
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.drawing import autocast, draw_batches
from brain_ldm.sampling.ranks import own_device
from brain_ldm.sampling.requests import requested_rows
from brain_ldm.sampling.writers import Writers

SET = 100_000  # brains, as the paper released
STEPS = 50
PEAK = 989e12  # operations a second of an H100 SXM in bf16, dense (its data sheet)
RANGES = {"sex": (0, 1), "age": (44, 82), "ventricular_volume": (7e3, 1.7e5),
          "brain_volume": (1.1e6, 1.8e6)}  # fmt: skip
TIMES = 3  # an image is encoded


def network_of(experiment: str, schema: type) -> object:
    """Return the network's options of an experiment."""
    said = OmegaConf.load(conf_folder() / "experiment" / f"{experiment}.yaml")
    chosen = said.get("task", {}).get("network", {})
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), chosen))


def build(resolution: int, autoencoder: str, diffusion: str) -> Diffusion:
    """Return a model with the networks of two experiments and random weights."""
    torch.manual_seed(0)
    grid = GridConfig(**paper_grid(resolution).to_dict())
    covariates = [
        {"name": name, "unit": COVARIATES[name].unit, "low": low, "high": high}
        for name, (low, high) in RANGES.items()
    ]
    saved = SavedDiffusion(
        grid=grid,
        network=network_of(diffusion, UNetConfig),
        latent_scale=1.0,
        covariates=covariates,
    )
    inner = SavedAutoencoder(grid=grid, network=network_of(autoencoder, AutoencoderConfig))
    return Diffusion(saved, Autoencoder(inner)).eval().requires_grad_(False)


def draw(model: Diffusion, brains: int, batch: int, processes: int) -> tuple[float, float]:
    """Draw and write a set; return the seconds it took, and those waiting for the networks."""
    device = own_device(open_device("auto"))
    config = SampleConfig(n=brains, batch_size=batch, sampler=DDIMConfig(steps=STEPS))
    rows = requested_rows(config, model.encoder)
    batches = [rows.iloc[i : i + batch].reset_index(drop=True) for i in range(0, brains, batch)]
    extra = {"seed": {"Description": "Seed"}}
    with tempfile.TemporaryDirectory() as folder:
        writer = CohortWriter(
            Path(folder) / "set", "Bench", {"Name": "bench"}, model.grid, True, extra_columns=extra
        )
        waited, began = 0.0, time.perf_counter()
        with Writers(processes) as writers, torch.inference_mode(), autocast(config, device):
            drawn = draw_batches(model.to(device), batches, config, device)
            while True:
                asked = time.perf_counter()
                batch, images = next(drawn, (None, None))
                waited += time.perf_counter() - asked
                if batch is None:
                    break
                for row, image in zip(batch.to_dict("records"), images, strict=True):
                    writers.put(writer.add, row, image)
        return time.perf_counter() - began, waited


def operations(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Count the operations of a call on tensors without data."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops()


def encoding() -> dict[str, tuple[float, float]]:
    """Return, by storage, seconds to write a brain of 1 mm and its size in MB."""
    grid = paper_grid(1)
    template = resample_img(
        load_mni152_template(1), grid.affine, grid.shape, force_resample=True, copy_header=True
    ).get_fdata(dtype=np.float32)
    noise = 0.01 * np.random.default_rng(0).standard_normal(grid.shape, np.float32)
    brain = np.where(template > 0, template / template.max() + noise, 0).clip(0, 1)
    found = {}
    for storage in STORAGE:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / storage
            writer = CohortWriter(root, "Bench", {"Name": "bench"}, grid, True, storage=storage)
            seconds = []
            for number in range(TIMES):
                began = time.perf_counter()
                writer.add({"participant_id": f"sub-{number}"}, brain)
                seconds.append(time.perf_counter() - began)
            size = next(root.rglob("*.nii.gz")).stat().st_size
        found[storage] = min(seconds), size / 1e6
    return found


def measured(arguments: argparse.Namespace) -> None:
    """Print brains an hour of this machine."""
    folder = Path(arguments.model)
    if folder.is_dir():
        model, whose = open_model(folder, Diffusion), str(folder)
    else:
        model = build(4, "ae_demo", "ldm_demo")
        whose = f"{folder} is not there: its networks with random weights"
    print(f"{whose}; {model.grid}; DDIM-{STEPS}, {arguments.brains} brains each")
    print(f"{'batch':>6} {'writers':>8} {'brains/hour':>12} {'networks compute':>17}")
    draw(model, 1, 1, 0)  # prepares kernels
    for batch, processes in product(arguments.batches, arguments.writers):
        seconds, waited = draw(model, arguments.brains, batch, processes)
        rate = 3600 * arguments.brains / seconds
        print(f"{batch:6} {processes:8} {rate:12,.0f} {waited / seconds:17.0%}")


def full_size(arguments: argparse.Namespace) -> None:
    """Print what a full-size brain takes on this machine's GPU, or on its CPU if that is asked."""
    device = own_device(open_device("auto"))
    gpu = device.type == "cuda"
    if not gpu and not arguments.full_on_cpu:
        return
    model = build(1, "ae_ukb", "ldm_cond").to(device)
    where = torch.cuda.get_device_name() if gpu else "CPU"
    steps = arguments.full_steps
    print(f"\nfull size, {model.grid}, {where}; DDIM-{steps}")
    print(f"{'batch':>6} {'s/brain':>8} {'GiB at most':>12}")
    for batch in arguments.full_batches if gpu else [1]:
        config = SampleConfig(n=2 * batch, batch_size=batch, sampler=DDIMConfig(steps=steps))
        rows = requested_rows(config, model.encoder)
        batches = [rows.iloc[i : i + batch].reset_index(drop=True) for i in (0, batch)]
        with torch.inference_mode(), autocast(config, device):
            if gpu:
                list(draw_batches(model, batches[:1], config, device))
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            list(draw_batches(model, batches[1:], config, device))
            each = (time.perf_counter() - began) / batch
        peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else resident()
        print(f"{batch:6} {each:8.2f} {peak:12.1f}", flush=True)


def resident() -> float:
    """Return the most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def projected(arguments: argparse.Namespace) -> None:
    """Print what a large set of full-size brains would take."""
    with torch.device("meta"):
        model = build(1, "ae_ukb", "ldm_cond")
        latent = torch.empty(1, *model.autoencoder.latent_shape)
        time_and_covariates = torch.empty(1), torch.empty(1, len(RANGES))
        step = operations(model.network, latent, *time_and_covariates)
        decode = operations(model.autoencoder.network.decode, latent)
    brain = STEPS * step + decode
    print(f"\nfull size, {model.grid}, guidance=1 (any other: twice the U-Net)")
    print(f"U-Net {step / 1e12:.3f} TFLOP × {STEPS} steps + decoder {decode / 1e12:.2f} TFLOP = "
          f"{brain / 1e12:.1f} TFLOP a brain")  # fmt: skip
    seconds = {u: brain / (PEAK * u) for u in arguments.utilisation}
    print(f"{'utilisation':>12} {'s/brain':>8} {f'GPU-hours for {SET:,}':>22}  (one H100, bf16, "
          f"{PEAK / 1e12:.0f} TFLOP/s)")  # fmt: skip
    for share, each in seconds.items():
        print(f"{share:12.0%} {each:8.2f} {each * SET / 3600:22.1f}")
    print(f"{'storage':>12} {'MB':>8} {f'GB for {SET:,}':>22} {'s to encode':>12} "
          f"{'cores that keep up':>19}")  # fmt: skip
    for storage, (encode, size) in encoding().items():
        low, high = (encode / s for s in (max(seconds.values()), min(seconds.values())))
        print(f"{storage:>12} {size:8.1f} {size * SET / 1e3:22,.0f} {encode:12.2f} "
              f"{f'{low:.1f} to {high:.1f}':>19}")  # fmt: skip


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/ldm_demo")
    parser.add_argument("--brains", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--writers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--full-batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--full-steps", type=int, default=STEPS)
    parser.add_argument("--full-on-cpu", action="store_true", help="minutes, for one brain")
    parser.add_argument("--only-full", action="store_true")
    parser.add_argument("--utilisation", type=float, nargs="+", default=[0.2, 0.35, 0.5])
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")  # fmt: skip
    if not arguments.only_full:
        measured(arguments)
    full_size(arguments)
    if not arguments.only_full:
        projected(arguments)


if __name__ == "__main__":
    main()
