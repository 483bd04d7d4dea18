"""The denoising U-Net with hybrid conditioning: concatenation and cross-attention."""

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from brain_ldm.networks.config import UNetConfig


class ConditionalUNet(nn.Module):
    """Predict epsilon or v from a noisy latent, its timestep and the covariates.

    The covariate vector enters twice (Pinaya et al. 2022): broadcast over the volume as further
    input channels, and raw as the one token of the cross-attention. No embedding network.
    """

    def __init__(self, config: UNetConfig, latent_channels: int, covariates: int) -> None:
        super().__init__()
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=latent_channels + covariates,
            out_channels=latent_channels,
            channels=config.channels,
            num_res_blocks=config.res_blocks,
            attention_levels=config.attention_levels,
            num_head_channels=config.head_channels,
            norm_num_groups=config.norm_groups,
            norm_eps=1e-6,
            resblock_updown=True,
            transformer_num_layers=1,
            with_conditioning=True,
            cross_attention_dim=covariates,
        )

    def forward(self, latent: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """Return the prediction, shaped as `latent`.

        Args:
            latent: (B, C, X, Y, Z), noisy and scaled.
            timesteps: (B,), integers in 0..T-1.
            conditions: (B, N), encoded covariates.
        """
        maps = conditions[:, :, None, None, None].expand(-1, -1, *latent.shape[2:])
        return self.unet(
            torch.cat([latent, maps.to(latent.dtype)], dim=1),
            timesteps=timesteps,
            context=conditions[:, None].to(latent.dtype),
        )
