"""What bf16-mixed buys on this machine: a forward and backward pass of each demo network.

Both precisions run in one process, by turns, so that a busy machine slows both; the ratio is the
median over the turns of time in 32-true over time in bf16-mixed. Run: make bench
"""

import platform
import statistics
import time
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from brain_ldm.command import conf_folder
from brain_ldm.networks.autoencoder import build_autoencoder
from brain_ldm.networks.brain_age import BrainAgeNetwork
from brain_ldm.networks.config import (
    AutoencoderConfig,
    BrainAgeConfig,
    SegmenterConfig,
    UNetConfig,
)
from brain_ldm.networks.segmenter import build_segmenter
from brain_ldm.networks.unet import ConditionalUNet

TURNS = 5
IMAGE, LATENT = (40, 56, 40), (20, 28, 20)


def demo(name: str, schema: type) -> Any:
    """Return the network's options in conf/experiment/<name>_demo.yaml."""
    said = OmegaConf.load(conf_folder() / "experiment" / f"{name}_demo.yaml")
    network = said.get("task", {}).get("network", {})
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), network))


def networks() -> dict[str, tuple[nn.Module, tuple]]:
    """Return the demo's networks with an input each."""
    return {
        "autoencoder, batch 1": (
            build_autoencoder(demo("ae", AutoencoderConfig)),
            (torch.rand(1, 1, *IMAGE),),
        ),
        "U-Net, batch 16": (
            ConditionalUNet(demo("ldm", UNetConfig), (3, *LATENT), 4, missing=-1.0),
            (torch.randn(16, 3, *LATENT), torch.randint(1000, (16,)), torch.rand(16, 4)),
        ),
        "segmenter, batch 1": (
            build_segmenter(demo("segmenter", SegmenterConfig), 5),
            (torch.rand(1, 1, *IMAGE),),
        ),
        "brain age, batch 16": (
            BrainAgeNetwork(demo("brain_age", BrainAgeConfig), IMAGE),
            (torch.rand(16, 1, *IMAGE),),
        ),
    }


def seconds(network: nn.Module, inputs: tuple, bf16: bool) -> float:
    """Time one forward and backward pass."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = network(*inputs)
    (output[0] if isinstance(output, tuple) else output).float().square().mean().backward()
    return time.perf_counter() - began


def main() -> None:
    """Print a row a network."""
    torch.manual_seed(0)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}, {TURNS} turns")  # fmt: skip
    print(f"{'network':22} {'32-true s':>10} {'bf16 s':>8} {'ratio':>6}  (min, max)")
    for name, (network, inputs) in networks().items():
        for bf16 in (False, True):  # the first pass prepares kernels
            seconds(network, inputs, bf16)
        turns = [
            (seconds(network, inputs, False), seconds(network, inputs, True)) for _ in range(TURNS)
        ]
        full, half = (statistics.median(times) for times in zip(*turns, strict=True))
        ratios = [a / b for a, b in turns]
        print(
            f"{name:22} {full:10.3f} {half:8.3f} {statistics.median(ratios):6.2f}"
            f"  ({min(ratios):.2f}, {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
