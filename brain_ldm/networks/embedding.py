"""A T1w volume as a short vector: a small 3-D convolutional network (ours)."""

from torch import Tensor, nn

from brain_ldm.errors import InputError
from brain_ldm.networks.config import EmbeddingConfig


class EmbeddingNetwork(nn.Module):
    """Blocks of [strided conv, group norm, ReLU], the mean over all voxels, one linear layer.

    The mean over voxels takes any grid, and forgives a volume that is moved a little. Registered
    brains share most of it, so that all embeddings would begin, and stay, as one: what differs
    between brains is brought to unit variance first. As in any batch norm, that is over the batch
    of each device in training, and by running statistics, kept with the weights, in use.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for channels in config.channels:
            if config.norm_groups < 1 or channels % config.norm_groups:
                raise InputError(
                    f"task.network.norm_groups is {config.norm_groups}, which does not divide "
                    f"{channels} channels: give a divisor of all of task.network.channels"
                )
            layers += [
                nn.Conv3d(inputs, channels, 3, stride=2, padding=1),
                nn.GroupNorm(config.norm_groups, channels),
                nn.ReLU(),
            ]
            inputs = channels
        self.blocks = nn.Sequential(*layers)
        self.standardise = nn.BatchNorm1d(inputs, momentum=0.2, affine=False)
        self.head = nn.Linear(inputs, config.features)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) for images (B, 1, X, Y, Z)."""
        return self.head(self.standardise(self.blocks(images).mean(dim=(2, 3, 4))))
