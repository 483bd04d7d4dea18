"""The denoising U-Net with hybrid conditioning: concatenation and cross-attention."""

import torch
from einops import rearrange
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from brain_ldm.errors import InputError
from brain_ldm.networks.config import Conditioning, UNetConfig


class ConditionalUNet(nn.Module):
    """Predict epsilon, v or x0 from a noisy latent, its timestep and the covariates.

    The covariate vector enters twice (Pinaya et al. 2022): broadcast over the volume as further
    input channels, and raw as the one token of the cross-attention. No embedding network. Either
    can be left out; without covariates neither is there. Without cross-attention, attention is to
    the volume itself alone.
    """

    def __init__(
        self,
        config: UNetConfig,
        latent_shape: tuple[int, int, int, int],
        covariates: int,
        missing: float,
    ) -> None:
        super().__init__()
        channels, *space = latent_shape
        if config.patch < 1:
            raise InputError(f"task.network.patch is {config.patch}; give 1 or more")
        factor = config.patch * 2 ** (len(config.channels) - 1)
        if any(axis % factor for axis in space):
            raise InputError(
                f"the U-Net shrinks each axis by {factor}, which does not divide the latent "
                f"{'×'.join(map(str, space))}: give it fewer levels or another patch"
            )
        self.patch = config.patch
        block = config.patch**3
        self.maps = None
        if config.condition_maps:
            self.maps = ConditionMaps(covariates, config.condition_maps, space, missing)
        self.concatenates = config.conditioning is not Conditioning.cross_attention
        self.attends = covariates > 0 and config.conditioning is not Conditioning.concatenation
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=(channels + config.condition_maps) * block + covariates * self.concatenates,
            out_channels=channels * block,
            channels=config.channels,
            num_res_blocks=config.res_blocks,
            attention_levels=config.attention_levels,
            num_head_channels=config.head_channels,
            norm_num_groups=config.norm_groups,
            norm_eps=1e-6,
            resblock_updown=True,
            transformer_num_layers=1,
            with_conditioning=self.attends,
            cross_attention_dim=covariates if self.attends else None,
        )

    def forward(self, latent: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """Return the prediction, shaped as `latent`.

        Args:
            latent: (B, C, X, Y, Z), noisy and scaled.
            timesteps: (B,), integers in 0..T-1.
            conditions: (B, N), covariates in 0..1, or `missing`.
        """
        x = latent
        if self.maps is not None:
            x = torch.cat([x, self.maps(conditions).to(x.dtype)], dim=1)
        x = to_patches(x, self.patch)
        if self.concatenates:
            broadcast = conditions[:, :, None, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, broadcast.to(x.dtype)], dim=1)
        token = conditions[:, None].to(x.dtype) if self.attends else None
        output = self.unet(x, timesteps=timesteps, context=token)
        return from_patches(output, self.patch)


class ConditionMaps(nn.Module):
    """Maps over the latent that are linear in the covariates, with a weight for every voxel.

    A convolution treats all places alike; in registered brains a covariate acts in its own places,
    and these maps say where. They are further channels of the latent beside the plain broadcast
    (ours).
    """

    GAIN = 5.0  # on weights that are small: places learn as much faster than convolutions

    def __init__(self, covariates: int, maps: int, size: list[int], missing: float) -> None:
        super().__init__()
        self.missing = missing
        self.weight = nn.Parameter(torch.randn(covariates, maps, *size) * 0.1 / self.GAIN)
        self.bias = nn.Parameter(torch.randn(maps, *size) / self.GAIN)

    def forward(self, conditions: Tensor) -> Tensor:
        """Return (B, maps, X, Y, Z) for conditions (B, N); a missing one adds nothing."""
        # Of a variance near 1.
        spread = (4 * conditions - 2).masked_fill(conditions == self.missing, 0)
        spread = spread.to(self.weight.dtype)
        return self.GAIN * (torch.einsum("bn,nmxyz->bmxyz", spread, self.weight) + self.bias)


def to_patches(x: Tensor, edge: int) -> Tensor:
    """Return (B, C·edge³, X/edge, Y/edge, Z/edge): each block of voxels as channels."""
    return rearrange(x, "b c (x p) (y q) (z r) -> b (c p q r) x y z", p=edge, q=edge, r=edge)


def from_patches(x: Tensor, edge: int) -> Tensor:
    """Return (B, C, X, Y, Z): the inverse of `to_patches`."""
    return rearrange(x, "b (c p q r) x y z -> b c (x p) (y q) (z r)", p=edge, q=edge, r=edge)
