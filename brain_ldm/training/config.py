"""Options of `train`: what is trained, on which cohort, how long and where the model lands.

P: the paper (Pinaya et al. 2022). B: the published MONAI bundle. W: the first author's later
re-training code. Everything else is our choice.
"""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from brain_ldm.diffusion.config import Prediction, ScheduleConfig
from brain_ldm.networks.config import (
    AutoencoderConfig,
    BrainAgeConfig,
    DiscriminatorConfig,
    SegmenterConfig,
    UNetConfig,
)
from brain_ldm.precision import Precision


class Schedule(Enum):
    """How a learning rate goes from the first step to the last."""

    constant = "constant"
    one_cycle = "one_cycle"  # rises over a tenth of the steps, then falls to zero (Smith 2018)


@dataclass
class PerceptualConfig:
    """Whose features the perceptual loss compares."""

    # segmenter: a model of ours, trained on labels and never on intensities of the cohort;
    # otherwise a network of MONAI's PerceptualLoss, by its name there.
    network: str = "segmenter"
    # The segmenter's model folder; for a hub network the torch.hub folder that holds it
    # (null: MONAI downloads it at the first run).
    weights: str | None = None
    slices: float = 0.25  # share of slices a plane for 2-D networks (W)


@dataclass
class AutoencoderLossConfig:
    """Weight of each term of the generator's loss. Not stated in the paper; defaults from W."""

    l1: float = 1.0
    perceptual: float = 0.002
    adversarial: float = 0.005  # least squares
    kl: float = 1e-8  # of the KL summed over the latent, mean over the batch
    adversarial_start: int = 0  # generator steps before the discriminator and its term begin


@dataclass
class Task:
    """What `train` trains: the base of the choices in conf/task/."""


@dataclass
class AutoencoderTask(Task):
    """The autoencoder with its discriminator: L1 + perceptual + patch-adversarial + KL (P)."""

    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)
    lr: float = 5e-5  # generator, Adam (W)
    discriminator_lr: float = 1e-4  # Adam (W)
    lr_schedule: Schedule = Schedule.constant  # of both
    gradient_clip: float = 1.0  # norm, for each optimiser (W)


@dataclass
class DiffusionTask(Task):
    """The conditional diffusion model on the latents of a trained autoencoder."""

    autoencoder: str = MISSING  # model folder
    network: UNetConfig = field(default_factory=UNetConfig)
    covariates: list[str] = field(
        default_factory=lambda: ["sex", "age", "ventricular_volume", "brain_volume"]  # order: B
    )
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    prediction: Prediction = Prediction.epsilon  # P, B
    # Latents are multiplied by it before diffusion; null: 1 / their standard deviation on the
    # training split. (B decodes with 1.0, W uses 0.3.)
    latent_scale: float | None = None
    # Subtract the mean latent of the training split first: registered brains share most of theirs.
    centre_latents: bool = False
    # Timesteps are drawn as T·u^power, u uniform; below 1 for more of the noisy ones, at which
    # covariates decide what a brain becomes.
    timestep_power: float = 1.0
    # For x0 prediction: its squared error counts 1 / (1 - alpha_bar) times, as that of v does, but
    # no more than this often; 1 for the plain error.
    x0_weight: float = 1.0
    condition_dropout: float = 0.1  # all covariates at once: gives the unconditional model
    covariate_dropout: float = 0.1  # each covariate by itself: any subset can be asked for
    ema: float = 0.999  # decay of the weights' moving average, reached gradually
    lr: float = 2.5e-5  # AdamW (W, BrLP)
    lr_schedule: Schedule = Schedule.constant
    gradient_clip: float = 1.0


@dataclass
class SegmenterTask(Task):
    """The tissue segmenter, trained on labels with random contrast (Billot et al. 2023)."""

    network: SegmenterConfig = field(default_factory=SegmenterConfig)
    lr: float = 3e-3  # Adam, at its highest
    t1_share: float = 0.5  # draws with T1-like order of intensities: dark CSF, grey, bright white


@dataclass
class BrainAgeTask(Task):
    """Age regression (Cole et al. 2017): L1 loss, SGD with momentum."""

    network: BrainAgeConfig = field(default_factory=BrainAgeConfig)
    lr: float = 0.01
    weight_decay: float = 5e-5
    shift: int = 2  # voxels: random translation of each training volume, every axis
    noise: float = 0.02  # sd of the noise that is added to each training volume (0..1)


@dataclass
class DataConfig:
    """The cohort and how it is fed."""

    cohort: str = MISSING  # folder
    batch_size: int = 1  # a device
    workers: int = 0  # processes that read


@dataclass
class TrainerConfig:
    """How long and on what."""

    max_steps: int = 1000  # optimiser steps; generator steps for a GAN
    accelerator: str = "auto"  # Lightning's: auto, cpu, gpu
    devices: int = 1
    precision: Precision = Precision.auto
    log_every: int = 10  # steps
    val_every: int = 500  # steps


@dataclass
class TrainConfig:
    """Options of `train`."""

    task: Task = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0
    out: str = "models/${hydra:runtime.choices.experiment}"  # the model folder
