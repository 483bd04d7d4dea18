"""What a training leaves for its dashboards, and for whoever looks into its folder."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.training.wandb_file import records

DOCUMENTED = Path(__file__).parents[2] / "docs" / "dashboards.md"
PICTURES = {
    "autoencoder": {"pictures/reconstructions"},
    "diffusion": {"pictures/samples", "pictures/sweep"},
}
KEYS = {
    "autoencoder": {
        "train/l1", "train/perceptual", "train/kl", "train/adversarial", "train/generator",
        "train/discriminator", "weight/adversarial", "gradient/generator",
        "gradient/discriminator", "lr/generator", "lr/discriminator", "val/reconstruction",
        "val/psnr", "latent/psnr", "latent/kl_per_dimension", "latent/sigma_share",
    },
    "diffusion": {"train/loss", "val/loss", "gradient/norm", "lr/network"},
}  # fmt: skip
ALWAYS = {"speed/samples_per_second", "speed/seconds_per_step", "memory/resident_gib"}


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion"])
def test_an_offline_wandb_run_holds_metrics_pictures_and_config(
    kind, trainings, run_command, workplace, monkeypatch
):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    options = [*trainings[kind], "trainer.max_steps=6", "pictures.count=2", "pictures.steps=2"]
    options += ["logger=wandb", "logger.mode=offline", "logger.tags=[tiny]", "out=model"]
    code, _, err = run_command("train", *options)
    assert code == 0, err
    wandb.teardown()  # what it still holds goes to the file
    run = Path("model/run")
    found = next(run.glob("wandb/offline-run-*/run-*.wandb"))
    logged, pictures, config = set(), set(), {}
    for record in records(found):
        for item in record.history.item:
            name = item.key or item.nested_key[0]
            logged.add(name)
            if "_type" in item.nested_key and "images" in item.value_json:
                pictures.add(name)
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
    assert (KEYS[kind] | ALWAYS) <= logged
    assert pictures == PICTURES[kind]
    assert config["seed"] == 0 and config["trainer"]["max_steps"] == 6
    assert config["code_version"].startswith("0.")
    assert (run / "wandb_id").read_text().strip() in found.name
    assert {f"pictures/{p.name.split('-')[0]}" for p in run.glob("pictures/*.png")} == PICTURES[
        kind
    ]
    # The same numbers are in the CSV file, and every name of them is in the documentation.
    table = pd.read_csv(run / "logs" / "metrics.csv")
    assert (KEYS[kind] | ALWAYS) <= set(table.columns)
    documented = set(re.findall(r"`([a-z]+/[a-z0-9_<>]+)`", DOCUMENTED.read_text()))
    for name in set(table.columns) - {"step"}:
        assert re.sub(r"_\d+$", "_<channel>", name) in documented, name
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["trainer"]["max_steps"] == 6 and "${" not in (run / "config.yaml").read_text()


def test_tensorboard(trainings, run_command, workplace):
    pytest.importorskip("tensorboard", reason="needs pip install -e '.[dashboards]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = [*trainings["diffusion"], "trainer.max_steps=2", "logger=tensorboard", "out=model"]
    code, _, err = run_command("train", *options)
    assert code == 0, err
    events = EventAccumulator("model/run/tensorboard")
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert (KEYS["diffusion"] | ALWAYS) <= scalars
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2]


def test_the_card_names_step_and_value_of_the_best(trainings, run_command, workplace):
    options = [*trainings["diffusion"], "trainer.val_every=2", "trainer.max_steps=6", "out=model"]
    code, out, err = run_command("train", *options)
    assert code == 0, err
    table = pd.read_csv("model/run/logs/metrics.csv")
    losses = table.dropna(subset="val/loss").set_index("step")["val/loss"]
    assert list(losses.index) == [2, 4, 6]
    best = losses.idxmin()
    card = Path("model/MODEL_CARD.md").read_text()
    assert f"those of step {best}, whose loss was the lowest" in card
    assert f"- loss: {losses[best]:.4g}" in card
    assert f"best at step {best}: loss {losses[best]:.4g}" in out
    result = json.loads(Path("model/run/result.json").read_text())
    assert (result["metric"], result["step"]) == ("val/loss", best)
    assert result["value"] == pytest.approx(losses[best], rel=1e-5)
