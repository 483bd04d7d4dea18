"""Memory and time of one training step at the paper's size, batch 1, in bf16-mixed.

The autoencoder's step is the generator's and the discriminator's, with the losses of
experiment=ae_ukb; the diffusion model's is that of experiment=ldm_cond. Both run on this machine's
CPU with checkpointed blocks, each in a process of its own, so that its peak of resident memory is
that step's. The RadImageNet network is not ours to ship: a ResNet-50 of MONAI's with random weights
stands in for it, of the same size.

Bytes are counted on tensors without data, at full size: what autograd keeps from the forward pass
for the backward pass (each storage once, parameters excluded), and the most that is alive at any
moment of the two, gradients included. Weights, optimiser and the convolution library's workspace
come on top. Norms compute in float32, as autocast does on a GPU; a CPU's leaves them in bf16.

Run: make bench, or python benchmarks/full_size_step.py --only ae|ldm|bytes
"""

import argparse
import multiprocessing
import platform
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from monai.losses import PatchAdversarialLoss, PerceptualLoss
from monai.networks.nets import resnet50
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brain_ldm.networks.autoencoder import build_autoencoder, downsampling
from brain_ldm.networks.checkpointing import checkpoint_blocks
from brain_ldm.networks.config import AutoencoderConfig, DiscriminatorConfig, UNetConfig
from brain_ldm.networks.discriminator import build_discriminator
from brain_ldm.networks.perceptual import hub_perceptual_loss
from brain_ldm.networks.unet import ConditionalUNet
from brain_ldm.training.autoencoder import kl_divergence
from brain_ldm.training.config import AutoencoderTask, DiffusionTask

GIB = 2**30
SHAPE, LATENT = (160, 224, 160), (3, 20, 28, 20)
COVARIATES = 4
BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


class Trunk(nn.Sequential):
    """A ResNet-50 up to its last feature map, as RadImageNet's is used."""

    def __init__(self) -> None:
        network = resnet50(spatial_dims=2, n_input_channels=3, feed_forward=False)
        stem = [network.conv1, network.bn1, network.act, network.maxpool]
        super().__init__(*stem, *(getattr(network, f"layer{i}") for i in range(1, 5)))


class AutoencoderStep:
    """The networks and losses of experiment=ae_ukb, and one step of each side."""

    def __init__(self, network: AutoencoderConfig, ours: bool) -> None:
        self.weights = AutoencoderTask().loss
        self.autoencoder = build_autoencoder(network)
        self.discriminator = build_discriminator(DiscriminatorConfig())
        self.adversarial = PatchAdversarialLoss(criterion="least_squares")
        self.factor = downsampling(network)
        share = AutoencoderTask().perceptual.slices
        with mock.patch.object(torch.hub, "load", lambda *_, **__: Trunk()):
            if ours:
                self.perceptual = hub_perceptual_loss("radimagenet_resnet50", None, share)
                checkpoint_blocks(self.autoencoder)
                checkpoint_blocks(self.discriminator)
            else:
                loss = PerceptualLoss(3, "radimagenet_resnet50", fake_3d_ratio=share)
                self.perceptual = lambda images, targets, _: loss(images, targets)

    def generator_loss(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the reconstructions."""
        self.discriminator.requires_grad_(False)
        mu, sigma = self.autoencoder.encode(images)
        reconstructions = self.autoencoder.decode(mu + sigma * torch.randn_like(mu))
        generators = [torch.Generator().manual_seed(row) for row in range(len(images))]
        logits = self.discriminator(reconstructions)[-1].float()
        loss = self.weights.l1 * F.l1_loss(reconstructions.float(), images)
        loss += self.weights.perceptual * self.perceptual(reconstructions, images, generators)
        loss += self.weights.kl * kl_divergence(mu.float(), sigma.float())
        loss += self.weights.adversarial * self.adversarial(logits, True, for_discriminator=False)
        return loss, reconstructions.detach()

    def discriminator_loss(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Return the least-squares loss."""
        self.discriminator.requires_grad_(True)
        fake = self.discriminator(reconstructions)[-1].float()
        real = self.discriminator(images)[-1].float()
        return 0.5 * (
            self.adversarial(fake, False, for_discriminator=True)
            + self.adversarial(real, True, for_discriminator=True)
        )


def build_unet(ours: bool) -> ConditionalUNet:
    """Return the paper's U-Net."""
    network = ConditionalUNet(UNetConfig(), LATENT, COVARIATES, missing=-1.0)
    if ours:
        checkpoint_blocks(network)
    return network


def diffusion_loss(network: ConditionalUNet, batch: int) -> Tensor:
    """Return the squared error of epsilon for random latents."""
    latents, noise = torch.randn(2, batch, *LATENT)
    output = network(latents, torch.randint(1000, (batch,)), torch.rand(batch, COVARIATES))
    return F.mse_loss(output.float(), noise)


def parameters(module: nn.Module) -> str:
    """Return the count of a module's parameters, in words."""
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M"


def step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float) -> None:
    """Differentiate the loss, clip, and let the optimiser step."""
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()


def autoencoder_step() -> str:
    """Step generator and discriminator once; return the counts of their parameters."""
    task = AutoencoderTask()
    training = AutoencoderStep(task.network, ours=True)
    generator, discriminator = training.autoencoder, training.discriminator
    generator_adam = torch.optim.Adam(generator.parameters(), task.lr)
    discriminator_adam = torch.optim.Adam(discriminator.parameters(), task.discriminator_lr)
    images = torch.rand(1, 1, *SHAPE)
    with torch.autocast(**BF16):
        loss, reconstructions = training.generator_loss(images)
        step(generator, generator_adam, loss, task.gradient_clip)
        loss = training.discriminator_loss(images, reconstructions)
        step(discriminator, discriminator_adam, loss, task.gradient_clip)
    return (
        f"autoencoder {parameters(generator)}, discriminator {parameters(discriminator)}, "
        f"perceptual network {parameters(training.perceptual)}"
    )


def diffusion_step() -> str:
    """Step the U-Net once and average its weights; return the count of its parameters."""
    task = DiffusionTask()
    network = build_unet(ours=True)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(task.ema))
    adam = torch.optim.AdamW(network.parameters(), task.lr)
    with torch.autocast(**BF16):
        loss = diffusion_loss(network, batch=1)
    step(network, adam, loss, task.gradient_clip)
    average.update_parameters(network)
    return f"U-Net {parameters(network)}, and their moving average"


STEPS = {"ae": ("autoencoder", autoencoder_step), "ldm": ("diffusion", diffusion_step)}


def peak_resident() -> int:
    """Return the most bytes of memory that this process has held (Linux)."""
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def run(name: str) -> None:
    """Run a step and print what it took."""
    torch.manual_seed(0)
    title, run_step = STEPS[name]
    before = peak_resident()
    began = time.perf_counter()
    counts = run_step()
    took = time.perf_counter() - began
    peak = peak_resident()
    print(
        f"{title} step: {took:.0f} s, peak resident {peak / GIB:.1f} GiB ({peak / 1e9:.1f} GB), "
        f"of which {before / GIB:.1f} GiB before it; {counts}",
        flush=True,
    )


def run_alone(name: str) -> None:
    """Run a step in a fresh process."""
    process = multiprocessing.get_context("spawn").Process(target=run, args=(name,))
    process.start()
    process.join()
    if process.exitcode:
        print(f"{STEPS[name][0]} step: ended with code {process.exitcode} (-9: out of memory)")


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Run an operation and count its outputs."""
        output = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return output

    def free(self, key: int) -> None:
        """Count a storage no longer."""
        self.now -= self.sizes.pop(key)


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """Let group and layer norms compute as under CUDA's autocast."""
    group_norm, layer_norm = F.group_norm, F.layer_norm
    with (
        mock.patch.object(F, "group_norm", lambda x, *rest: group_norm(x.float(), *rest)),
        mock.patch.object(F, "layer_norm", lambda x, *rest: layer_norm(x.float(), *rest)),
    ):
        yield


def count(loss_of: Callable[[], tuple[Tensor, list[nn.Module]]]) -> tuple[float, float]:
    """Return GiB that are kept for the backward pass, and the most that is alive."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with norms_in_float32(), LiveBytes() as live:
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast(**BF16):
            loss, modules = loss_of()
        own = {p.untyped_storage()._cdata for m in modules for p in m.parameters()}
        saved = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
        kept.clear()
        loss.backward()
    return saved / GIB, live.peak / GIB


def count_autoencoder(
    network: AutoencoderConfig, shape: tuple[int, int, int], ours: bool
) -> tuple[float, float]:
    """Count for the generator's loss at batch 1."""
    with FakeTensorMode():
        training = AutoencoderStep(network, ours)
        images = torch.rand(1, 1, *shape)
        modules = [training.autoencoder, training.discriminator]
        return count(lambda: (training.generator_loss(images)[0], modules))


def count_diffusion(batch: int, ours: bool) -> tuple[float, float]:
    """Count for the diffusion loss."""
    with FakeTensorMode():
        network = build_unet(ours)
        return count(lambda: (diffusion_loss(network, batch), [network]))


def print_bytes() -> None:
    """Print a row a recipe: MONAI's modules as they come, and ours."""
    smaller = AutoencoderConfig(channels=[64, 128, 128])
    half = tuple(axis // 2 for axis in SHAPE)
    recipes: dict[str, Callable[[bool], tuple[float, float]]] = {
        "autoencoder, 1 mm 160×224×160, channels 64 128 128 128": lambda ours: count_autoencoder(
            AutoencoderConfig(), SHAPE, ours
        ),
        "autoencoder, 2 mm 80×112×80, channels 64 128 128": lambda ours: count_autoencoder(
            smaller, half, ours
        ),
        "diffusion, latent 3×20×28×20, batch 1": lambda ours: count_diffusion(1, ours),
        "diffusion, latent 3×20×28×20, batch 4": lambda ours: count_diffusion(4, ours),
    }
    print(
        f"{'GiB, bf16-mixed':56} {'kept: MONAI':>12} {'ours':>6} {'alive: MONAI':>13} {'ours':>6}"
    )
    for name, recipe in recipes.items():
        (kept, alive), (our_kept, our_alive) = recipe(False), recipe(True)
        print(f"{name:56} {kept:12.2f} {our_kept:6.2f} {alive:13.2f} {our_alive:6.2f}", flush=True)


def main() -> None:
    """Print what was asked for; everything where nothing was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*STEPS, "bytes"])
    only = parser.parse_args().only
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")  # fmt: skip
    if only in (None, "bytes"):
        print_bytes()
    for name in STEPS:
        if only in (None, name):
            run_alone(name)


if __name__ == "__main__":
    main()
