"""The patch discriminator of the autoencoder's GAN."""

from monai.networks.layers import Norm
from monai.networks.nets import PatchDiscriminator

from brain_ldm.networks.config import DiscriminatorConfig


def build_discriminator(config: DiscriminatorConfig) -> PatchDiscriminator:
    """Return MONAI's PatchDiscriminator; its last output is the map of logits.

    Instance norm instead of MONAI's default batch norm (ours): with one or two volumes a device,
    batch statistics are noise, and they would change with the number of devices.
    """
    return PatchDiscriminator(
        spatial_dims=3,
        in_channels=1,
        channels=config.channels,
        num_layers_d=config.layers,
        norm=Norm.INSTANCE,
    )
