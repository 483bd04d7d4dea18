"""The published bundle in small: its files and networks, reduced widths, random weights.

After models/brain_image_synthesis_latent_diffusion_model of Project-MONAI/model-zoo (ZOO), and
after model-zoo/models/… of Project-MONAI/GenerativeModels, where it was first released (FIRST,
and EARLIEST, with another name for the schedule).
"""

import functools
import json
from pathlib import Path

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet

ZOO, FIRST, EARLIEST = "zoo", "first", "earliest"
SHAPE = (32, 64, 32)  # 32 is what four levels of the autoencoder and three of the U-Net divide
LATENT = (3, 4, 8, 4)

AUTOENCODER = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 3,
    "channels": [4, 8, 8, 8],
    "num_res_blocks": 2,
    "norm_num_groups": 4,
    "norm_eps": 1e-06,
    "attention_levels": [False, False, False, False],
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
}
UNET = {
    "spatial_dims": 3,
    "in_channels": 7,
    "out_channels": 3,
    "channels": [8, 16, 24],
    "num_res_blocks": 2,
    "attention_levels": [False, True, True],
    "norm_num_groups": 4,
    "norm_eps": 1e-06,
    "resblock_updown": True,
    "num_head_channels": [0, 16, 24],
    "with_conditioning": True,
    "transformer_num_layers": 1,
    "cross_attention_dim": 4,
    "upcast_attention": True,
    "use_flash_attention": False,
}
SCHEDULER = {
    "_requires_": ["@load_diffusion", "@load_autoencoder"],
    "beta_start": 0.0015,
    "beta_end": 0.0205,
    "num_train_timesteps": 1000,
    "schedule": "scaled_linear_beta",
    "clip_sample": False,
}


@functools.cache
def networks() -> tuple[AutoencoderKL, DiffusionModelUNet]:
    """MONAI's networks with weights of which none is zero; not to be changed."""
    torch.manual_seed(0)
    made = AutoencoderKL(**AUTOENCODER).eval(), DiffusionModelUNet(**UNET).eval()
    for network in made:
        for weight in network.parameters():
            if not weight.any():  # MONAI begins the U-Net's last layers at zero
                torch.nn.init.normal_(weight, std=0.05)
    return made


def in_older_names(state: dict) -> dict:
    """A state dict of MONAI's as MONAI Generative Models would have named it."""
    renamed = {}
    for name, value in state.items():
        if "transformer_blocks" in name:
            name = name.replace("out_proj", "to_out.0")
        renamed[name.replace("postconv", "conv")] = value
    return renamed


def write_bundle(folder: Path, layout: str = ZOO, older: bool = True) -> Path:
    """Write the bundle and return its folder; `older`: with the older names of weights."""
    package = "monai" if layout == ZOO else "generative"
    rename = {"channels": "channels" if layout == ZOO else "num_channels"}
    made = zip(("AutoencoderKL", "DiffusionModelUNet"), (AUTOENCODER, UNET), strict=True)
    autoencoder_def, diffusion_def = (
        {
            "_target_": f"{package}.networks.nets.{name}",
            **{rename.get(key, key): value for key, value in arguments.items()},
        }
        for name, arguments in made
    )
    scheduler = dict(SCHEDULER)
    if layout == EARLIEST:
        scheduler["beta_schedule"] = scheduler.pop("schedule").removesuffix("_beta")
    inference = {
        "imports": ["$import torch", "$from datetime import datetime", "$from pathlib import Path"],
        "bundle_root": ".",
        "model_dir": "$@bundle_root + '/models'",
        "gender": 0.0,
        "age": 0.1,
        "ventricular_vol": 0.2,
        "brain_vol": 0.4,
        "autoencoder_def": autoencoder_def,
        "diffusion_def": diffusion_def,
        "scheduler": {"_target_": f"{package}.networks.schedulers.DDIMScheduler", **scheduler},
        "noise": f"$torch.randn((1, {', '.join(map(str, LATENT))})).to(@device)",
    }
    names = ["Gender", "Age", "Ventricular volume", "Brain volume"]
    metadata = {
        "version": "1.0.0",
        "network_data_format": {
            "inputs": {"image": {"channel_def": {str(i): name for i, name in enumerate(names)}}},
            "outputs": {"pred": {"spatial_shape": [s if layout == ZOO else str(s) for s in SHAPE]}},
        },
    }
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    files = ("autoencoder.pt", "model.pt")
    if layout != ZOO:
        files = ("autoencoder.pth", "diffusion_model.pth")
    for network, file in zip(networks(), files, strict=True):
        state = network.state_dict()
        torch.save(in_older_names(state) if older else state, folder / "models" / file)
    return folder
