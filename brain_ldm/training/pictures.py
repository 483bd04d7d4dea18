"""Pictures of every validation: reconstructions, or samples and a covariate sweep.

A brain is three slices side by side, axial, coronal and sagittal, in grey from 0 (black) to 1
(white), none stretched, with the participant's left on the left.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from brain_ldm.cohorts.covariates import COVARIATES, CovariateEncoder
from brain_ldm.cohorts.covariates import MISSING as NO_VALUE
from brain_ldm.cohorts.grid import VoxelGrid
from brain_ldm.diffusion.config import DDIMConfig
from brain_ldm.diffusion.grid import timesteps
from brain_ldm.errors import InputError
from brain_ldm.models import Autoencoder, Diffusion, Generator, Model
from brain_ldm.training.config import PicturesConfig
from brain_ldm.training.data import VALIDATION
from brain_ldm.training.randomness import generator, normal

# Where the slices cross, mm in MNI space: beside the midline, through both lateral ventricles.
CROSSING = (3.0, -16.0, 19.0)
SWEEP = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a covariate's training range
STRONGEST = 0.25  # difference that has the full colour
WIDE, NARROW = 480, 260  # pixels that a brain is at least enlarged to
STRIP, GAP, LETTERS = 19, 6, 13  # pixels: height of a line of text, space between, size of type
LIGHT, DIM = (235, 238, 241), (150, 158, 166)
GREY = "Axial, coronal, sagittal; left is left; grey from 0 to 1."

Tile = tuple[str, np.ndarray]  # a line of text and (height, width, 3) in 0..1


class Pictures(L.Callback):
    """Draw the first rows after every validation, into `run/pictures` and for every logger.

    Of an autoencoder: images, reconstructions and differences. Of a diffusion model: samples for
    the rows' covariates, and a sweep of each covariate for the first row; of a GAN: as many
    samples. Their noise is the same every time, so that pictures differ by the weights alone. Other
    models have no pictures. A cohort without validation rows is shown by its training rows.

    Args:
        config: how many brains, and how they are sampled.
        run: folder of the run.
        seed: of the noise, together with the row.
    """

    def __init__(self, config: PicturesConfig, run: Path, seed: int) -> None:
        self.config = config
        self.folder = run / "pictures"
        self.seed = seed

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw."""
        if trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking:
            self.draw(trainer, module)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        """Draw when a validation would be due, had the cohort rows for it."""
        every, done = trainer.val_check_interval, trainer.fit_loop.total_batch_idx + 1
        if not len(trainer.datamodule.rows["val"]) and done % every == 0:
            self.draw(trainer, module)

    def draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw, save and log the pictures of this step; nothing in training feels it."""
        makers = {
            Autoencoder: self.of_autoencoder,
            Diffusion: self.of_diffusion,
            Generator: self.of_generator,
        }
        make = makers.get(type(module.model))
        # Sharded weights come together only where all ranks ask for them.
        sharded = isinstance(trainer.strategy, FSDPStrategy)
        if make is None or not self.config.count or not (trainer.is_global_zero or sharded):
            return
        data = trainer.datamodule.rows
        rows = data["val"] if len(data["val"]) else data["train"]
        shown = [rows[VALIDATION, place] for place in range(min(self.config.count, len(rows)))]
        averaged = getattr(module, "averaged", nullcontext)
        mixed = torch.autocast(module.device.type, torch.bfloat16, "bf16" in trainer.precision)
        with torch.no_grad(), mixed, averaged(), evaluating(module.model):
            if sharded:
                # As Lightning takes its own steps: from within the wrapper's forward.
                module.forward = lambda: make(module.model, shown, module.device)
                try:
                    images = trainer.strategy.model()
                finally:
                    del module.forward
            else:
                images = make(module.model, shown, module.device)
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, image in images.items():
                image.save(self.folder / f"{name}-{trainer.global_step:08d}.png")
                send(trainer.loggers, f"pictures/{name}", image, trainer.global_step)

    def of_autoencoder(
        self, model: Autoencoder, rows: Sequence[dict[str, Tensor]], device: torch.device
    ) -> dict[str, Image.Image]:
        """Return each image beside its reconstruction and the difference of the two."""
        table = []
        for row in rows:
            image = row["image"].float()
            again = model.reconstruct(image[None, None].to(device))
            image, again = image.numpy(), again[0, 0].float().cpu().numpy()
            error = np.abs(again - image).mean()
            table.append(
                [
                    ("image", grey(slices(image, model.grid))),
                    ("reconstruction", grey(slices(again, model.grid))),
                    (f"difference, mean {error:.4f}", signed(slices(again - image, model.grid))),
                ]
            )
        legend = f"{GREY} Difference: red too bright, blue too dark, full at {STRONGEST}."
        return {"reconstructions": sheet(table, legend, WIDE)}

    def of_diffusion(
        self, model: Diffusion, rows: Sequence[dict[str, Tensor]], device: torch.device
    ) -> dict[str, Image.Image]:
        """Return samples for the rows' covariates, and one brain as each of them changes."""
        asked = torch.stack([row["conditions"] for row in rows]).float()
        draws = [generator(self.seed, "pictures", int(row["index"])) for row in rows]
        noise = normal(draws, torch.empty(len(rows), *model.autoencoder.latent_shape))
        samples = self._sample(model, asked, noise, device)
        table = [
            [(describe(model.encoder, conditions), grey(slices(volume, model.grid)))]
            for conditions, volume in zip(asked.tolist(), samples, strict=True)
        ]
        images = {"samples": sheet(table, GREY, WIDE)}
        strips = []
        for number, name in enumerate(model.encoder.names):
            varied = asked[:1].repeat(len(SWEEP), 1)
            varied[:, number] = torch.tensor(SWEEP)
            volumes = self._sample(model, varied, noise[:1].repeat(len(SWEEP), 1, 1, 1, 1), device)
            texts = [say(model.encoder, name, value) for value in SWEEP]
            tiles = [grey(slices(volume, model.grid)) for volume in volumes]
            strips.append(list(zip(texts, tiles, strict=True)))
        if strips:
            fixed = describe(model.encoder, asked[0].tolist())
            images["sweep"] = sheet(strips, f"What does not vary: {fixed}. {GREY}", NARROW)
        return images

    def of_generator(
        self, model: Generator, rows: Sequence[dict[str, Tensor]], device: torch.device
    ) -> dict[str, Image.Image]:
        """Return a sample for each row, whose number is the seed of its noise."""
        draws = [generator(self.seed, "pictures", int(row["index"])) for row in rows]
        noise = normal(draws, torch.empty(len(rows), model.latent_size)).to(device)
        volumes = [model.generate(z[None])[0, 0].float().cpu().numpy() for z in noise]
        table = [
            [(f"noise {number}", grey(slices(volume, model.grid)))]
            for number, volume in enumerate(volumes, 1)
        ]
        return {"samples": sheet(table, GREY, WIDE)}

    def _sample(
        self, model: Diffusion, conditions: Tensor, noise: Tensor, device: torch.device
    ) -> list[np.ndarray]:
        latents = model.sample(
            conditions.to(device), noise.to(device), sampler(self.config), self.config.guidance
        )
        # One by one: a decoded volume needs far more memory than a latent.
        return [model.decode(latent[None])[0, 0].float().cpu().numpy() for latent in latents]


def sampler(config: PicturesConfig) -> DDIMConfig:
    """Return how samples are drawn."""
    return DDIMConfig(steps=config.steps)


def check_pictures(config: PicturesConfig, model: Model) -> None:
    """Refuse what could not be drawn of `model`."""
    if config.count < 0:
        raise InputError(f"pictures.count is {config.count}; give 0 for none, or more")
    if config.count and isinstance(model, Diffusion):
        ddim = sampler(config)
        try:
            timesteps(ddim.grid, ddim.steps, len(model.alphas_cumprod))
        except ValueError as error:
            raise InputError(f"pictures.steps: {error}") from None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while, and each of its parts back as it was."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def describe(encoder: CovariateEncoder, conditions: Sequence[float]) -> str:
    """Return encoded covariates (N,) in their units, as text."""
    return ", ".join(say(encoder, *pair) for pair in zip(encoder.names, conditions, strict=True))


def say(encoder: CovariateEncoder, name: str, value: float) -> str:
    """Return one encoded covariate in its unit, as text: `age 63.2 years`."""
    number = encoder.names.index(name)
    shown = name.replace("_", " ")
    if value == NO_VALUE:
        return f"{shown} n/a"
    real = encoder.low[number] + value * (encoder.high[number] - encoder.low[number])
    levels = COVARIATES[name].levels if name in COVARIATES else {}
    codes = {level: code for code, level in levels.items()}
    if real in codes:
        return f"{shown} {codes[real]}"
    unit = encoder.units[number]
    real, unit = {"mm3": (real / 1000, "ml"), "year": (real, "years")}.get(unit, (real, unit))
    return f"{shown} {real:.4g} {unit}".rstrip()


def slices(volume: np.ndarray, grid: VoxelGrid) -> np.ndarray:
    """Return an axial, a coronal and a sagittal slice of a volume (X, Y, Z) side by side.

    Rows go from the front to the back, or from the top down; columns from the left to the right,
    or from the back to the front.
    """
    voxel = np.linalg.solve(grid.affine, [*CROSSING, 1.0])[:3]
    x, y, z = np.clip(np.rint(voxel).astype(int), 0, np.subtract(volume.shape, 1))
    planes = [volume[:, ::-1, z].T, volume[:, y, ::-1].T, volume[x, :, ::-1].T]
    height = max(len(plane) for plane in planes)
    above = [(height - len(plane)) // 2 for plane in planes]
    return np.hstack(
        [
            np.pad(plane, ((top, height - len(plane) - top), (0, 0)))
            for plane, top in zip(planes, above, strict=True)
        ]
    )


def grey(plane: np.ndarray) -> np.ndarray:
    """Return intensities (height, width) as colours (height, width, 3)."""
    return np.repeat(plane.clip(0, 1)[..., None], 3, axis=2)


def signed(plane: np.ndarray) -> np.ndarray:
    """Return differences as colours: red above 0, blue below, black at it."""
    strength = (np.abs(plane) / STRONGEST).clip(0, 1)[..., None]
    return strength * np.where(plane[..., None] > 0, (1.0, 0.35, 0.2), (0.25, 0.55, 1.0))


def sheet(table: Sequence[Sequence[Tile]], legend: str, width: int) -> Image.Image:
    """Return a picture of rows of tiles, each under its line of text, and a legend below.

    Tiles of one size are enlarged alike, by a whole number that makes them `width` pixels at least.
    """
    font = ImageFont.load_default(LETTERS)
    rows, columns = table[0][0][1].shape[:2]
    times = math.ceil(width / columns)
    wide, high = columns * times, rows * times
    across = max(len(row) for row in table)
    lines = wrapped(legend, font, across * (wide + GAP) - 2 * GAP)
    size = (
        across * (wide + GAP) - GAP,
        len(table) * (STRIP + high + GAP) + len(lines) * STRIP,
    )
    picture = Image.new("RGB", size)
    pen = ImageDraw.Draw(picture)
    for r, row in enumerate(table):
        for c, (text, tile) in enumerate(row):
            left, top = c * (wide + GAP), r * (STRIP + high + GAP)
            pen.text((left + GAP, top + 1), text, LIGHT, font)
            pixels = Image.fromarray(np.rint(tile * 255).astype(np.uint8))
            enlarged = pixels.resize((wide, high), Image.Resampling.BILINEAR)
            picture.paste(enlarged, (left, top + STRIP))
    for number, line in enumerate(lines):
        pen.text((GAP, size[1] - (len(lines) - number) * STRIP + 1), line, DIM, font)
    return picture


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return text in lines of at most `width` pixels, as far as its words allow."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def send(loggers: Sequence[Logger], key: str, image: Image.Image, step: int) -> None:
    """Give a picture to each logger that takes any."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [image], step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, np.asarray(image), step, dataformats="HWC")
