"""The denoising U-Net's wrapper: patches, and the ways in which covariates enter."""

import pytest
import torch

from brain_ldm.errors import InputError
from brain_ldm.networks.config import Conditioning, UNetConfig
from brain_ldm.networks.unet import ConditionalUNet, ConditionMaps, from_patches, to_patches

SMALL = {
    "channels": [8, 16],
    "res_blocks": 1,
    "attention_levels": [False, True],
    "head_channels": [0, 16],
    "norm_groups": 4,
}
MISSING = -1.0


def test_patches_go_back_and_keep_a_blocks_voxels_together():
    x = torch.arange(2 * 3 * 4 * 8 * 4).view(2, 3, 4, 8, 4)
    patches = to_patches(x, 2)
    assert patches.shape == (2, 24, 2, 4, 2)
    assert set(patches[1, :8, 1, 2, 0].tolist()) == set(x[1, 0, 2:4, 4:6, 0:2].flatten().tolist())
    assert torch.equal(from_patches(patches, 2), x)


def test_a_missing_covariate_adds_nothing_to_the_maps():
    maps = ConditionMaps(2, 3, [4, 4, 4], MISSING)
    first = maps(torch.tensor([[0.9, MISSING]]))
    with torch.no_grad():
        maps.weight[1] = 100.0
    assert torch.equal(maps(torch.tensor([[0.9, MISSING]])), first)
    assert not torch.equal(maps(torch.tensor([[0.9, 0.1]])), first)


def test_maps_are_linear_in_the_covariates_at_each_voxel():
    maps = ConditionMaps(1, 2, [4, 4, 4], MISSING)
    low, middle, high = (maps(torch.tensor([[c]])) for c in (0.2, 0.5, 0.8))
    assert torch.allclose(low + high, 2 * middle, atol=1e-5)
    assert (high - low).std() > 0


def effect_of_age(silenced):
    """The largest change of the output between two ages, with ways in for covariates cut."""
    torch.manual_seed(0)
    network = ConditionalUNet(UNetConfig(**SMALL), (3, 8, 8, 8), 2, MISSING).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if not weight.any():  # what MONAI begins at zero would hide everything
                torch.nn.init.normal_(weight, std=0.1)
            if "attention" in silenced and "attn2.to_v" in name:
                weight.zero_()
        if "concatenation" in silenced:
            network.unet.conv_in.conv.weight[:, -2:] = 0
        x, t = torch.randn(1, 3, 8, 8, 8), torch.tensor([500])
        young = network(x, t, torch.tensor([[0.0, 0.1]]))
        old = network(x, t, torch.tensor([[0.0, 0.9]]))
    return float((young - old).abs().max())


@pytest.mark.parametrize("silenced", ["attention", "concatenation"])
def test_covariates_act_by_either_way_alone(silenced):
    assert effect_of_age([silenced]) > 1e-4


def test_covariates_have_no_third_way_in():
    assert effect_of_age(["attention", "concatenation"]) == 0


def test_a_patch_of_nothing_or_a_latent_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="patch is 0"):
        ConditionalUNet(UNetConfig(**SMALL, patch=0), (3, 8, 8, 8), 2, MISSING)
    with pytest.raises(InputError, match=r"shrinks each axis by 4.*8×8×6"):
        ConditionalUNet(UNetConfig(**SMALL, patch=2), (3, 8, 8, 6), 2, MISSING)


@pytest.mark.parametrize("way", Conditioning)
def test_one_way_alone_still_tells_the_network(way):
    torch.manual_seed(0)
    network = ConditionalUNet(
        UNetConfig(**SMALL, conditioning=way), (3, 8, 8, 8), 2, MISSING
    ).eval()
    names = "".join(network.state_dict())
    assert ("attn2" in names) == (way is not Conditioning.concatenation)
    wide = network.unet.conv_in.conv.weight.shape[1]
    assert wide == (3 if way is Conditioning.cross_attention else 5)
    for weight in network.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    x, t = torch.randn(1, 3, 8, 8, 8), torch.tensor([500])
    young, old = (network(x, t, torch.tensor([[0.0, age]])) for age in (0.1, 0.9))
    assert float((young - old).abs().max()) > 0
