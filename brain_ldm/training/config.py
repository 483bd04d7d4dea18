"""Options of `train`: what is trained, on which cohort, how long and where the model lands.

P: the paper (Pinaya et al. 2022). B: the published MONAI bundle. W: the first author's later
re-training code. Everything else is our choice.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from brain_ldm.diffusion.config import Prediction, ScheduleConfig
from brain_ldm.networks.config import (
    AutoencoderConfig,
    BrainAgeConfig,
    DiscriminatorConfig,
    EmbeddingConfig,
    GeneratorConfig,
    SegmenterConfig,
    UNetConfig,
    VolumeDiscriminatorConfig,
)
from brain_ldm.precision import TrainingPrecision


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
class AugmentationConfig:
    """Random changes of each training image (TorchIO). Not stated in the paper; defaults from W."""

    flip: float = 0.5  # probability of a left-right flip
    affine: float = 0.1  # probability of a small affine map
    translation: float = 1.0  # voxels at most, every axis
    scale: float = 0.02  # 1 ± this at most, every axis
    intensity: float = 0.1  # probability of a shift and a gamma of all intensities
    shift: float = 0.05  # at most
    gamma: float = 0.03  # exponent 1 ± this at most


@dataclass
class AutoencoderLossConfig:
    """Weight of each term of the generator's loss. Not stated in the paper; defaults from W."""

    l1: float = 1.0
    perceptual: float = 0.002
    adversarial: float = 0.005  # least squares
    kl: float = 1e-8  # of the KL summed over the latent, mean over the batch
    adversarial_start: int = 0  # generator steps before the discriminator and its term begin
    # Scale the adversarial term by the ratio of the other terms' gradient to its own at the
    # decoder's last layer (Esser et al. 2021, VQGAN, equation 7). Off: W.
    adaptive: bool = False


@dataclass
class Task:
    """What `train` trains: the base of the choices in conf/task/.

    `best` names the validation metric, lower is better, whose best step becomes the model.
    """


@dataclass
class AutoencoderTask(Task):
    """The autoencoder with its discriminator: L1 + perceptual + patch-adversarial + KL (P)."""

    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    start_from: str | None = None  # model folder to fine-tune
    best: str = "reconstruction"  # of the validation metrics; the adversarial term is none
    lr: float = 5e-5  # generator, Adam (W)
    discriminator_lr: float = 1e-4  # Adam (W)
    lr_schedule: Schedule = Schedule.constant  # of both
    gradient_clip: float = 1.0  # norm, for each optimiser (W)


@dataclass
class DiffusionTask(Task):
    """The conditional diffusion model on the latents of a trained autoencoder."""

    autoencoder: str = MISSING  # model folder
    start_from: str | None = None  # diffusion model folder to fine-tune
    # Covariates of `start_from` that have another name here: {new name: old name}.
    renamed: Any = None
    network: UNetConfig = field(default_factory=UNetConfig)
    covariates: list[str] = field(
        default_factory=lambda: ["sex", "age", "ventricular_volume", "brain_volume"]  # order: B
    )
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    prediction: Prediction = Prediction.epsilon  # P, B
    # Latents are multiplied by it before diffusion; null: 1 / their standard deviation on the
    # training split. (B decodes with 1.0, W uses 0.3.)
    latent_scale: float | None = None
    # Encodings of each training image: the first as it is, further ones flipped left-right with
    # probability 1/2 and shifted by up to so many voxels along every axis.
    encodings: int = 1
    encoding_shift: int = 4
    # Subtract the mean latent of the training split first: registered brains share most of theirs.
    centre_latents: bool = False
    # For x0 prediction: the variance, of latents scaled to 1, of detail that a narrow network
    # cannot carry; it goes past the network (diffusion/parameterisation.py). 0 to 1, 0 for none.
    detail: float = 0.0
    condition_dropout: float = 0.1  # all covariates at once: gives the unconditional model
    covariate_dropout: float = 0.1  # each covariate by itself: any subset can be asked for
    ema: float = 0.999  # decay of the weights' moving average, reached gradually
    best: str = "loss"  # of the validation metrics
    lr: float = 2.5e-5  # AdamW (W, BrLP)
    lr_schedule: Schedule = Schedule.constant
    gradient_clip: float = 1.0


@dataclass
class LSGANTask(Task):
    """A GAN with least-squares losses (Mao et al. 2017), without covariates: a baseline of P."""

    network: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: VolumeDiscriminatorConfig = field(default_factory=VolumeDiscriminatorConfig)
    ema: float = 0.999  # decay of the generator's moving average, reached gradually
    best: str = "mmd"  # of the validation metrics; the losses of a GAN are none
    lr: float = 2e-4  # generator, Adam (Mao et al.)
    discriminator_lr: float = 2e-4  # Adam (Mao et al.)
    lr_schedule: Schedule = Schedule.constant  # of both
    gradient_clip: float = 1.0  # norm, for each optimiser


@dataclass
class VAEGANTask(Task):
    """A VAE whose decoder is a GAN's generator (Larsen et al. 2016): a baseline of P."""

    network: GeneratorConfig = field(default_factory=GeneratorConfig)  # the decoder's
    discriminator: VolumeDiscriminatorConfig = field(default_factory=VolumeDiscriminatorConfig)
    feature_layer: int = 3  # of the discriminator, from 1: where reconstructions are compared
    gamma: float = 1e-3  # weight of that comparison against the GAN's loss, in the decoder
    ema: float = 0.999  # decay of the decoder's moving average, reached gradually
    best: str = "mmd"  # of the validation metrics
    lr: float = 2e-4  # decoder, Adam
    encoder_lr: float = 2e-4  # Adam
    discriminator_lr: float = 2e-4  # Adam
    lr_schedule: Schedule = Schedule.constant  # of all three
    gradient_clip: float = 1.0  # norm, for each optimiser


@dataclass
class SegmenterTask(Task):
    """The tissue segmenter, trained on labels with random contrast (Billot et al. 2023)."""

    network: SegmenterConfig = field(default_factory=SegmenterConfig)
    lr: float = 3e-3  # Adam, at its highest
    best: str = "volume_error"
    t1_share: float = 0.5  # draws with T1-like order of intensities: dark CSF, grey, bright white
    # Part of the steps, the first ones, that see images of twice the voxel size: eight times as
    # fast, and what they teach holds at any size.
    coarse: float = 0.0


@dataclass
class BrainAgeTask(Task):
    """Age regression (Cole et al. 2017): L1 loss, SGD with momentum."""

    network: BrainAgeConfig = field(default_factory=BrainAgeConfig)
    lr: float = 0.01
    weight_decay: float = 5e-5
    shift: int = 2  # voxels: random translation of each training volume, every axis
    noise: float = 0.02  # sd of the noise that is added to each training volume (0..1)
    best: str = "mae"


@dataclass
class EmbeddingTask(Task):
    """An embedding in which views of one brain are closest (NT-Xent, Chen et al. 2020).

    Copies are looked for in it, as Dar et al. 2023 do; all numbers are ours.
    """

    network: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    # What a view may change; far more than an autoencoder's training images see.
    augmentation: AugmentationConfig = field(
        default_factory=lambda: AugmentationConfig(
            affine=1.0, translation=2.0, intensity=1.0, gamma=0.3
        )
    )
    noise: float = 0.05  # sd at most (0..1)
    blur: float = 0.8  # sd at most, voxels
    temperature: float = 0.1  # of the cosines in the loss
    lr: float = 1e-3  # Adam, at its highest
    best: str = "loss"


class Storage(Enum):
    """How packed images are kept."""

    float16 = "float16"
    uint8 = "uint8"  # half the disk; intensities in steps of 1/255


@dataclass
class DataConfig:
    """The cohort and how it is fed."""

    cohort: str = MISSING  # folder
    # Of its training rows so many, null for all: a smaller number takes some of those that a
    # larger one takes. 0 leaves those of `extra` alone.
    rows: int | None = None
    # Folders of further cohorts, synthetic ones for example: all their rows are training rows.
    extra: list[str] = field(default_factory=list)
    extra_rows: int | None = None  # of each of them so many, chosen as `rows` are; null for all
    batch_size: int = 1  # a device
    workers: int = 0  # processes that read, a device
    cache: str = "caches"  # folder of what is computed once: packed images and latents
    storage: Storage = Storage.float16
    # Column of participants.tsv: each epoch's rows are drawn with replacement, so that its levels
    # (of numbers: ten bins of equal width) come equally often.
    balance: str | None = None


class Strategy(Enum):
    """How the work is spread over devices."""

    auto = "auto"  # one device, or ddp where there are several
    ddp = "ddp"  # a copy of the model on each device
    fsdp = "fsdp"  # weights, gradients and optimiser in shards (GPUs; the diffusion model)


@dataclass
class TrainerConfig:
    """How long and on what. None of it is stated in the paper."""

    max_steps: int = 1000  # optimiser steps; generator steps for a GAN
    accelerator: str = "auto"  # Lightning's: auto, cpu, gpu
    devices: int = 1  # on each node
    nodes: int = 1
    strategy: Strategy = Strategy.auto
    precision: TrainingPrecision = TrainingPrecision.auto
    accumulate: int = 1  # batches of each device that make one step
    compile: bool = False  # torch.compile the networks
    activation_checkpointing: bool = (
        False  # compute activations twice, block by block, to save memory
    )
    log_every: int = 10  # steps
    val_every: int = 500  # steps
    checkpoint_every: int = 500  # steps


@dataclass
class LoggerConfig:
    """Where metrics go besides `run/logs/metrics.csv`: the base of the choices in conf/logger/."""


@dataclass
class CSVConfig(LoggerConfig):
    """Nowhere else."""


@dataclass
class TensorBoardConfig(LoggerConfig):
    """TensorBoard event files in `run/tensorboard`."""


class WandbMode(Enum):
    """Weights & Biases: with an account, without one, or not at all."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class WandbConfig(LoggerConfig):
    """Weights & Biases."""

    mode: WandbMode = WandbMode.online
    project: str = "brain_ldm"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    artifacts: bool = False  # upload the finished model folder


@dataclass
class PicturesConfig:
    """What is drawn at every validation: reconstructions, or samples and a covariate sweep."""

    count: int = 4  # brains; 0 for none
    steps: int = 50  # DDIM steps of a sample
    guidance: float = 1.0


@dataclass
class TrainConfig:
    """Options of `train`."""

    task: Task = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    seed: int = 0
    out: str = "models/${hydra:runtime.choices.experiment}"  # the model folder
    # auto: go on from the newest checkpoint of `<out>/run`, or begin where there is none; otherwise
    # the run folder to go on from.
    resume: str | None = None
