"""How far a brain moves when it is drawn in another batch, or by another number of threads.

The same rows by DDIM in 50 steps, against those of one batch. Intensities are 0 to 1. On a GPU
threads are not varied. Needs `make demo`. Run: .venv/bin/python benchmarks/determinism.py
"""

import argparse
import platform
from pathlib import Path

import numpy as np
import torch

from brain_ldm.device import open_device
from brain_ldm.diffusion.config import DDIMConfig
from brain_ldm.models import Diffusion, open_model
from brain_ldm.precision import Precision
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.drawing import autocast, draw_batches
from brain_ldm.sampling.ranks import own_device
from brain_ldm.sampling.requests import requested_rows


def draw(model: Diffusion, brains: int, batch: int, precision: Precision) -> np.ndarray:
    """Images of the rows, (n, X, Y, Z)."""
    device = own_device(open_device("auto"))
    config = SampleConfig(n=brains, batch_size=batch, precision=precision, sampler=DDIMConfig())
    rows = requested_rows(config, model.encoder)
    parts = [rows.iloc[i : i + batch].reset_index(drop=True) for i in range(0, brains, batch)]
    with torch.inference_mode(), autocast(config, device):
        drawn = draw_batches(model.to(device), parts, config, device)
        return np.concatenate([images for _, images in drawn])


def main() -> None:
    """Print for each precision what batches and threads change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/ldm_demo")
    parser.add_argument("--brains", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[5, 1])
    args = parser.parse_args()
    if not Path(args.model).is_dir():
        print(f"{args.model} is not there: make demo")
        return
    model, threads = open_model(args.model, Diffusion), torch.get_num_threads()
    gpu = open_device("auto").type == "cuda"
    where = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    print(f"{where}, {args.brains} brains, {threads} threads, torch {torch.__version__}")
    print(f"{'precision':>11} {'against one batch':>18} {'largest':>9} {'mean':>9}")
    for precision in (Precision["32-true"], Precision["bf16-mixed"]):
        whole = draw(model, args.brains, args.brains, precision)
        others = {f"batches of {b}": (b, threads) for b in args.batches}
        if not gpu and threads > 1:
            others["one thread"] = args.brains, 1
        for title, (batch, count) in others.items():
            torch.set_num_threads(count)
            apart = np.abs(draw(model, args.brains, batch, precision) - whole)
            torch.set_num_threads(threads)
            print(f"{precision.value:>11} {title:>18} {apart.max():9.1e} {apart.mean():9.1e}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
