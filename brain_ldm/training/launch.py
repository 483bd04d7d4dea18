"""The processes of a run: how further ranks are started, and what a job leaves behind."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd
from lightning.pytorch.strategies.launchers import subprocess_script


@contextmanager
def own_processes(out: str) -> Iterator[None]:
    """Let Lightning start further ranks with this job's options alone, and clean up after them.

    Lightning starts them with the parent's command line, which under `-m` is the whole sweep and
    under submitit another program; and it leaves rank and address in the environment, where the
    next job of a sweep would find them.

    Args:
        out: this job's model folder.
    """
    before = dict(os.environ)
    original = subprocess_script._hydra_subprocess_cmd
    if HydraConfig.initialized():
        given = [o for o in HydraConfig.get().overrides.task if not o.startswith("out=")]
        quoted = out.replace("'", r"\'")
        command = [sys.executable, "-m", "brain_ldm.train", *given, f"out='{quoted}'"]
        subprocess_script._hydra_subprocess_cmd = lambda rank: (command, get_original_cwd())
    try:
        yield
    finally:
        subprocess_script._hydra_subprocess_cmd = original
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def end_ranks(trainer: L.Trainer) -> None:
    """End the ranks that this process started: without it they would wait for it for ever."""
    ranks = getattr(trainer.strategy.launcher, "procs", [])
    # Lightning watches this very list, and ends this process too when one of it dies.
    ended, ranks[:] = list(ranks), []
    for process in ended:
        process.kill()
        process.wait()
