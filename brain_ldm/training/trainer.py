"""Lightning's trainer for a config: devices, strategy, precision, and what goes on beside."""

import logging
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from monai.networks.nets import AutoencoderKL
from monai.networks.nets.diffusion_model_unet import (
    DiffusionUNetResnetBlock,
    SpatialTransformer,
)
from torch.distributed.fsdp import MixedPrecision
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from brain_ldm.errors import InputError
from brain_ldm.networks.checkpointing import checkpoint_blocks
from brain_ldm.networks.cpu_bf16 import make_safe
from brain_ldm.networks.unet import ConditionalUNet
from brain_ldm.precision import resolve
from brain_ldm.training.callbacks import StepProgress
from brain_ldm.training.checkpoints import AtomicCheckpointIO, Checkpoints
from brain_ldm.training.config import DiffusionTask, TrainConfig, TrainerConfig
from brain_ldm.training.config import Strategy as StrategyName
from brain_ldm.training.data import rows_per_step
from brain_ldm.training.loggers import StepAxis, Throughput
from brain_ldm.training.module import TaskModule
from brain_ldm.training.pictures import Pictures

# Ranks wait for each other while caches are filled and pictures are drawn.
PATIENCE = timedelta(hours=1)


def make_trainer(
    config: TrainConfig, run: Path, loggers: Sequence[Logger], manual: bool
) -> tuple[L.Trainer, Checkpoints]:
    """Return Lightning's trainer and the callback that keeps checkpoints and the best weights.

    Args:
        config: options of `train`.
        run: folder of the run.
        loggers: where metrics go.
        manual: whether the module steps its optimisers itself, as a GAN does. It then accumulates
            gradients and clips them itself too.

    Raises:
        InputError: the devices that the config asks for are not there.
    """
    quieten()
    options = config.trainer
    checkpoints = Checkpoints(
        run / "checkpoints", options.checkpoint_every, options.val_every, config.task.best
    )
    batches = 1 if manual else options.accumulate
    try:
        trainer = L.Trainer(
            max_steps=options.max_steps,
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy=make_strategy(config, manual),
            precision=resolve(options.precision, options.accelerator),
            plugins=plugins(),
            logger=list(loggers),
            callbacks=[
                StepProgress(),
                StepAxis(),
                Throughput(rows_per_step(config), options.log_every),
                Pictures(config.pictures, run, config.seed),
                checkpoints,
            ],
            accumulate_grad_batches=batches,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=options.log_every,
            val_check_interval=options.val_every * batches,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the order of rows knows about ranks
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"trainer: {reason}") from None
    return trainer, checkpoints


def check_trainer(config: TrainConfig) -> None:
    """Refuse numbers that mean nothing, and devices that are not there."""
    options = config.trainer
    names = ("max_steps", "devices", "nodes", "accumulate", "log_every", "val_every")
    for name in (*names, "checkpoint_every"):
        if getattr(options, name) < 1:
            raise InputError(f"trainer.{name} is {getattr(options, name)}: give 1 or more")
    if config.data.batch_size < 1:
        raise InputError(f"data.batch_size is {config.data.batch_size}: give 1 or more")
    if config.data.workers < 0:
        raise InputError(f"data.workers is {config.data.workers}: give 0 or more")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed is {config.seed}: give 0 to {2**32 - 1}")
    if options.strategy is StrategyName.fsdp:
        if options.accelerator == "cpu" or not torch.cuda.is_available():
            raise InputError(
                "trainer.strategy=fsdp needs GPUs, and there is none: use trainer=ddp "
                "trainer.accelerator=cpu"
            )
        if not isinstance(config.task, DiffusionTask):
            raise InputError("trainer.strategy=fsdp is for the diffusion model: use trainer=ddp")
        if options.compile or options.precision.value == "bf16-true":
            raise InputError(
                "trainer.strategy=fsdp: takes neither trainer.compile nor trainer.precision="
                "bf16-true; leave them out"
            )
    if options.accelerator == "gpu" and not torch.accelerator.is_available():
        raise InputError("trainer.accelerator=gpu: there is no GPU here; use trainer=cpu")
    check_processes(options)


def check_processes(options: TrainerConfig) -> None:
    """Refuse another number of processes than the config counts on, where others start them."""
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect() and (started := kind().world_size()) != options.devices * options.nodes:
            raise InputError(
                f"{started} processes were started, but trainer.devices × trainer.nodes is "
                f"{options.devices * options.nodes}: make them equal"
            )


def fsdp_precision(config: TrainConfig) -> MixedPrecision | None:
    """Return what computes in bf16: not the sums of gradients, the inputs or the mean latent."""
    if resolve(config.trainer.precision, config.trainer.accelerator) != "bf16-mixed":
        return None
    return MixedPrecision(
        param_dtype=torch.bfloat16,
        reduce_dtype=torch.float32,
        buffer_dtype=torch.float32,
        cast_root_forward_inputs=False,
    )


def plugins() -> list[Any]:
    """Return how checkpoints are written, and on SLURM who requeues: not Lightning."""
    found: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        found.append(SLURMEnvironment(auto_requeue=False))
    return found


def make_strategy(config: TrainConfig, manual: bool) -> Strategy | str:
    """Return how the work is spread over devices."""
    options = config.trainer
    if options.strategy is StrategyName.fsdp:
        return FSDPStrategy(
            # The network and its moving average each by itself: so their shards are alike.
            auto_wrap_policy=ModuleWrapPolicy(
                {ConditionalUNet, DiffusionUNetResnetBlock, SpatialTransformer}
            ),
            mixed_precision=fsdp_precision(config),
            state_dict_type="full",  # one file, whatever the number of ranks
            timeout=PATIENCE,
        )
    if options.strategy is StrategyName.auto and options.devices * options.nodes == 1:
        return "auto"
    # A GAN's backward passes each reach one side's parameters alone.
    return DDPStrategy(
        find_unused_parameters=manual, gradient_as_bucket_view=True, timeout=PATIENCE
    )


def prepare(module: TaskModule, config: TrainConfig) -> None:
    """Save memory or time in the networks that train, as the config asks."""
    for network in module.networks:
        make_safe(network)
        if config.trainer.activation_checkpointing:
            checkpoint_blocks(network)
        if config.trainer.compile:
            called = (
                [network.encoder, network.decoder]
                if isinstance(network, AutoencoderKL)
                else [network]
            )
            for part in called:
                part.compile()


def quieten() -> None:
    """Silence what Lightning says about things that are as they should be."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # not which devices there are, and tips
    for message in (
        ".*treespec, LeafSpec.*",  # Lightning's own use of torch
        ".*in eval mode at the start of training.*",
        ".*resuming from a checkpoint that ended before the epoch.*",  # our order of rows can
        ".*smaller than the logging interval.*",
        ".*Total length of `DataLoader` across ranks is zero.*",  # a cohort without validation
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)
    if not torch.cuda.is_available():  # on a few cores workers do not pay
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
