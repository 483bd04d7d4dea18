"""The autoencoder with KL regularisation: image (B,1,X,Y,Z) to latent (B,C,X/f,Y/f,Z/f)."""

from monai.networks.nets import AutoencoderKL

from brain_ldm.networks.config import AutoencoderConfig


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Return MONAI's AutoencoderKL as the published model uses it (no attention)."""
    return AutoencoderKL(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=config.channels,
        num_res_blocks=config.res_blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        norm_eps=1e-6,
        attention_levels=[False] * len(config.channels),
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


def downsampling(config: AutoencoderConfig) -> int:
    """Return the factor by which each axis shrinks from image to latent."""
    return 2 ** (len(config.channels) - 1)
