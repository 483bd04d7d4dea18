"""Train the embedding that copies are looked for in: contrastive, without labels.

Two random views of one brain are to be closer to each other than to any view of another brain
(NT-Xent: Chen et al. 2020, arXiv 2002.05709), as Dar et al. 2023 (arXiv 2307.01148) train theirs on
volumes. What a view may change, the embedding learns to ignore: a copy that was flipped, moved,
blurred or re-coloured stays close to its original.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from brain_ldm.cohorts.cohort import Cohort
from brain_ldm.errors import InputError
from brain_ldm.models import Embedding, GridConfig, SavedEmbedding
from brain_ldm.training.augmentation import augment, check_augmentation
from brain_ldm.training.config import EmbeddingTask, Schedule, TrainConfig
from brain_ldm.training.data import CohortData, Rows
from brain_ldm.training.module import TaskModule
from brain_ldm.training.packed import Team, cache_folder, packed_images
from brain_ldm.training.randomness import generator
from brain_ldm.training.schedules import make_schedule

VIEWS = ("first", "second")


def build(config: TrainConfig, cohort: Cohort) -> tuple[TaskModule, CohortData]:
    """Return the module and the pairs of views that train `config.task` on `cohort`."""
    task = config.task
    check_views(task)
    if config.data.batch_size * config.trainer.devices * config.trainer.nodes < 2:
        raise InputError(
            f"data.batch_size is {config.data.batch_size}: give 2 or more, since each brain is "
            "told apart from the others of its batch"
        )
    saved = SavedEmbedding(grid=GridConfig(**cohort.grid.to_dict()), network=task.network)

    def views(item: dict[str, Tensor], step: int, row: int) -> dict[str, Tensor]:
        image = item["image"].float()
        drawn = (generator(config.seed, name, step, row) for name in VIEWS)
        return {
            "image": image,
            **{name: view(image, task, draw) for name, draw in zip(VIEWS, drawn, strict=True)},
        }

    def rows(split: str, team: Team) -> Rows:
        folder = cache_folder(config.data.cache, cohort, f"images_{split}")
        images = packed_images(cohort, cohort.rows(split), folder, team, config.data.storage)
        return Rows({"image": images}, views)

    module = EmbeddingTraining(Embedding(saved), task, config.seed, config.trainer.max_steps)
    return module, CohortData(config, len(cohort.rows("train")), rows)


def check_views(task: EmbeddingTask) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        InputError: the temperature is not above 0, noise or blur is negative, or what
            `check_augmentation` refuses.
    """
    check_augmentation(task.augmentation)
    if not task.temperature > 0:
        raise InputError(f"task.temperature is {task.temperature:g}: give more than 0")
    for name in ("noise", "blur"):
        if not 0 <= (value := getattr(task, name)) < math.inf:
            raise InputError(f"task.{name} is {value:g}: give 0 or more")


def view(image: Tensor, task: EmbeddingTask, draw: torch.Generator) -> Tensor:
    """Return a random view of one image: augmented, then blurred, then with noise.

    Args:
        image: (X, Y, Z) in 0..1; left as it is.
        task: how far each change may go.
        draw: of all draws, on the CPU.

    Returns:
        (X, Y, Z) float32; noise may leave 0..1.
    """
    changed = augment(image, task.augmentation, draw)
    blur, noise = torch.rand(2, generator=draw).tolist()
    changed = blurred(changed, task.blur * blur)
    return changed + task.noise * noise * torch.randn(image.shape, generator=draw)


def blurred(image: Tensor, sd: float) -> Tensor:
    """Return the image (X, Y, Z) under a Gaussian of `sd` voxels; outside of it all is 0."""
    reach = math.ceil(3 * sd)
    if reach == 0:
        return image
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = (-0.5 * (offsets / sd).square()).exp()
    kernel /= kernel.sum()
    result = image[None, None]
    for axis in range(3):
        shape, padding = [1] * 5, [0] * 3
        shape[2 + axis], padding[axis] = len(kernel), reach
        result = F.conv3d(result, kernel.view(shape), padding=padding)
    return result[0, 0]


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of finding each view's partner among all other views.

    Args:
        first, second: (N, D) two views of N brains, unit vectors.
        temperature: divides the cosines.
    """
    views = torch.cat([first, second])
    logits = views @ views.T / temperature
    logits.fill_diagonal_(-math.inf)  # a view is not its own partner
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(logits, partner)


class EmbeddingTraining(TaskModule):
    """NT-Xent over the views of all brains of a batch, on all ranks together.

    With gradient accumulation each part has its own negatives: unlike elsewhere, parts are then
    not the same as one larger batch.
    """

    judges = ("loss", "mismatch")

    def __init__(self, model: Embedding, task: EmbeddingTask, seed: int, max_steps: int) -> None:
        super().__init__(model, task, seed, max_steps)
        self.validated: list[tuple[Tensor, Tensor]] = []  # rows, embeddings

    def configure_optimizers(self) -> dict:
        """Return Adam; the learning rate rises over a tenth of the training and then falls."""
        optimizer = torch.optim.Adam(self.model.parameters(), self.task.lr)
        schedule = make_schedule(optimizer, Schedule.one_cycle, self.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Return the loss on two views of each brain."""
        local = self.embedded(batch, VIEWS)
        # Every rank has the whole loss; summed over ranks on the way back and averaged by DDP, its
        # gradient is that of one rank with all rows.
        everywhere = self.all_gather(local, sync_grads=True).reshape(-1, *local.shape[1:])
        loss = nt_xent(*everywhere.unbind(1), self.task.temperature)
        self.note({"loss": loss})
        return loss

    def embedded(self, batch: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
        """Return the embeddings (B, N, D) of N kinds of images in a batch, in one pass."""
        images = torch.cat([self.fed(batch[name]) for name in names])
        return torch.stack(self.model.embed(images).chunk(len(names)), dim=1)

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        """Keep the embeddings of the batch: all rows are judged against each other."""
        found = self.embedded(batch, (*VIEWS, "image"))
        self.validated.append((batch["index"].to(found.device), found))

    def on_validation_epoch_end(self) -> None:
        """Log the loss, and the share of brains whose view is closest to another brain's image.

        Views of validation rows are the same at every validation.
        """
        rows, found = (torch.cat(part) for part in zip(*self.validated, strict=True))
        self.validated = []
        if self.trainer.world_size > 1:
            rows, found = (torch.cat(gather_all_tensors(part)) for part in (rows, found))
        # In the order of rows, each once, whichever rank had them.
        _, places = np.unique(rows.cpu().numpy(), return_index=True)
        first, second, image = found[torch.from_numpy(places)].unbind(1)
        closest = (first @ image.T).argmax(1)
        mismatch = closest != torch.arange(len(image), device=closest.device)
        self.log_validation(
            {
                "loss": nt_xent(first, second, self.task.temperature),
                "mismatch": mismatch.float().mean(),
            },
            len(image),
        )
