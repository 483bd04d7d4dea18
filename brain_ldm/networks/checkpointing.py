"""Less memory in training: activations are computed again in the backward pass, block by block.

Chen et al. 2016, arXiv 1604.06174, with torch's checkpoint. The cuts lie where it is cheap: a
convolution keeps its input alone, and torch stops as soon as it has what the backward pass lacks,
so a part that ends in a convolution repeats all but that convolution. Norm, activation, padding and
interpolation are repeated, which cost little; of a residual block two tensors stay instead of six.
"""

from collections.abc import Callable
from typing import Any

import torch
from monai.networks.blocks import SpatialAttentionBlock, UpSample
from monai.networks.nets.autoencoderkl import AEKLDownsample, AEKLResBlock, Decoder, Encoder
from monai.networks.nets.basic_unet import TwoConv
from monai.networks.nets.diffusion_model_unet import (
    DiffusionUNetResnetBlock,
    DiffusionUNetTransformerBlock,
)
from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brain_ldm.networks.generator import Block


def checkpoint_blocks(network: nn.Module) -> None:
    """Let the blocks in `network` keep little between forward and backward pass, in place.

    State dict, outputs and gradients stay what they are, to the bit. It reaches AutoencoderKL,
    PatchDiscriminator, BasicUNet and DiffusionModelUNet of MONAI and the generator of the GANs,
    wherever in `network` they are; other modules stay as they are.
    """
    for module in network.modules():
        module.__class__ = CHECKPOINTED.get(type(module), type(module))


def recompute(function: Callable[..., Any], *inputs: Any) -> Any:
    """Return `function(*inputs)`; of what its backward pass needs, keep the inputs alone."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)


# Each class below is its base with the same operations in the same order, cut into parts. A change
# of class, and not a wrapper, keeps names, types and deep copies as they were.


class CheckpointedResBlock(AEKLResBlock):
    """The autoencoder's residual block in two parts of [norm, SiLU, convolution]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', X, Y, Z) for x (B, C, X, Y, Z)."""
        h = recompute(lambda x: self.conv1(nn.functional.silu(self.norm1(x))), x)
        h = recompute(lambda h: self.conv2(nn.functional.silu(self.norm2(h))), h)
        return self.nin_shortcut(x) + h


class CheckpointedEncoder(Encoder):
    """The encoder as one part of parts: it is kept as the image alone while the decoder learns.

    At the published size that takes 11 % more arithmetic, and nearly halves what is kept.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, X/f, Y/f, Z/f) for images (B, 1, X, Y, Z)."""
        return recompute(lambda x: blocks_and_tail(self.blocks, x), x)


class CheckpointedDecoder(Decoder):
    """The decoder; the last norm and convolution are one part."""

    def forward(self, x: Tensor) -> Tensor:
        """Return images (B, 1, X, Y, Z) for x (B, C, X/f, Y/f, Z/f)."""
        return blocks_and_tail(self.blocks, x)


def blocks_and_tail(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    """Return x after all blocks, of which the last two are a norm and a convolution."""
    *body, norm, convolution = blocks
    for block in body:
        x = block(x)
    return recompute(lambda x: convolution(norm(x)), x)


class CheckpointedDownsample(AEKLDownsample):
    """Padding and a strided convolution as one part."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, X/2, Y/2, Z/2)."""
        return recompute(super().forward, x)


class CheckpointedUpSample(UpSample):
    """Interpolation and a convolution as one part: the input is an eighth of what lies between."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', 2X, 2Y, 2Z)."""
        return recompute(super().forward, x)


class CheckpointedDiscriminator(PatchDiscriminator):
    """The discriminator, a part a layer."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of all layers; the last are the logits."""
        outputs = []
        for layer in self.children():
            x = recompute(layer, x)
            outputs.append(x)
        return outputs


class CheckpointedTwoConv(TwoConv):
    """Two of [convolution, norm, activation] as one part: the segmenter's blocks."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', X, Y, Z)."""
        return recompute(super().forward, x)


class CheckpointedResnetBlock(DiffusionUNetResnetBlock):
    """The denoising U-Net's residual block in two parts of [norm, SiLU, convolution]."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return (B, C', X', Y', Z') for x (B, C, X, Y, Z) and the timestep's embedding (B, E)."""
        x, h = recompute(self.first, x)
        temb = self.time_emb_proj(self.nonlinearity(emb))
        h = h + temb.reshape(*temb.shape, *[1] * self.spatial_dims)
        h = recompute(lambda h: self.conv2(self.nonlinearity(self.norm2(h))), h)
        return self.skip_connection(x) + h

    def first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, resampled where the block does that, and what the first convolution gives."""
        h = self.nonlinearity(self.norm1(x))
        if self.upsample is not None:
            x, h = self.upsample(x), self.upsample(h)
        elif self.downsample is not None:
            x, h = self.downsample(x), self.downsample(h)
        return x, self.conv1(h)


class CheckpointedAttention(SpatialAttentionBlock):
    """Self-attention over the volume, of networks without a context, as one part."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, X, Y, Z)."""
        return recompute(super().forward, x)


class CheckpointedTransformerBlock(DiffusionUNetTransformerBlock):
    """Self-attention, cross-attention and feed-forward, a part each."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return (B, N, C) for x (B, N, C) and context (B, M, D)."""
        x = recompute(lambda x: self.attn1(self.norm1(x)), x) + x
        x = recompute(lambda x, context: self.attn2(self.norm2(x), context=context), x, context) + x
        return recompute(lambda x: self.ff(self.norm3(x)), x) + x


class CheckpointedBlock(Block):
    """Norm, activation, upsampling and a convolution as one part: the generator's blocks."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', sX, sY, sZ) for the block's scale s."""
        return recompute(super().forward, x)


CHECKPOINTED: dict[type[nn.Module], type[nn.Module]] = {
    kind.__base__: kind
    for kind in (
        CheckpointedResBlock,
        CheckpointedEncoder,
        CheckpointedDecoder,
        CheckpointedDownsample,
        CheckpointedUpSample,
        CheckpointedDiscriminator,
        CheckpointedTwoConv,
        CheckpointedResnetBlock,
        CheckpointedAttention,
        CheckpointedTransformerBlock,
        CheckpointedBlock,
    )
}
