"""`train`, each of whose ranks leaves its weights in rank<N>.pt: for torchrun."""

import os

import torch

from brain_ldm import train
from brain_ldm.training import fit

make_trainer = fit.make_trainer


def make_and_watch(*args, **options):
    trainer, checkpoints = make_trainer(*args, **options)
    end = checkpoints.on_train_end

    def save_and_end(trainer, module):
        torch.save(module.state_dict(), f"rank{os.environ['RANK']}.pt")
        end(trainer, module)

    checkpoints.on_train_end = save_and_end
    return trainer, checkpoints


fit.make_trainer = make_and_watch
train.main()
