"""Runs of `train` in processes of their own: wait for them, stop them, compare what they leave."""

import os
import signal
import subprocess
import time
from pathlib import Path

import torch

TWO_RANKS = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


def end(process, number=signal.SIGKILL):
    """Send a signal to a process and all that it has started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
    process.wait(60)


def succeed(process, seconds=240, folder=None):
    """Wait for a process that must succeed; return what it printed.

    It has `seconds` in all; with a folder, for as long as `seconds` never pass without a new file.
    """
    before = None
    while True:
        try:
            out, _ = process.communicate(timeout=seconds)
            break
        except subprocess.TimeoutExpired:
            now = None if folder is None else files_under(folder)
            if now == before:
                raise
            before = now
    assert process.returncode == 0, out
    return out


def files_under(folder):
    """Count files, also while others come and go."""
    return sum(len(names) for *_, names in os.walk(folder))


def await_checkpoint(process, model, step):
    """Wait until `model` has a checkpoint of `step` steps or later."""
    folder = Path(model) / "run" / "checkpoints"
    for _ in range(4000):
        found = [int(p.stem.split("-")[1]) for p in folder.glob("step-*.ckpt")]
        if found and max(found) >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.03)
    raise AssertionError(f"no checkpoint of step {step} in {folder}")


def last_checkpoint(model):
    """Return the newest checkpoint's content."""
    path = max((Path(model) / "run" / "checkpoints").glob("step-*.ckpt"))
    return torch.load(path, weights_only=True)


def differences(a, b, path=""):
    """Yield where two nested structures differ, tensors to the bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            if key not in a or key not in b:
                yield f"{path}/{key}"
            else:
                yield from differences(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield path
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences(x, y, f"{path}/{i}")
    elif torch.is_tensor(a):
        if not torch.equal(a, b):
            yield path
    elif a != b:
        yield path
