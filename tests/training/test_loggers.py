"""Where metrics go: what files and W&B's own file hold, over starts, ranks and missing accounts."""

import csv
import importlib.util
import json
import re
import subprocess
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import wandb
from torch.utils.data import DataLoader

import brain_ldm
from brain_ldm.errors import InputError
from brain_ldm.training import loggers as module
from brain_ldm.training.config import CSVConfig, TensorBoardConfig, WandbConfig, WandbMode
from brain_ldm.training.loggers import (
    StepAxis,
    Throughput,
    check_logger,
    close_loggers,
    code_version,
    make_loggers,
    upload_model,
)
from tests.training.wandb_file import records

DOCS = Path(__file__).parents[2] / "docs"
OFFLINE = WandbConfig(mode=WandbMode.offline, project="tests", group="g", tags=["t"])


class Line(L.LightningModule):
    """One weight; it counts its optimiser's steps itself."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Linear(1, 1)
        self.register_buffer("steps", torch.zeros(()))
        self.seen = {}  # learning rate of each step

    def counted(self, rate):
        optimizer = torch.optim.SGD(self.weight.parameters(), rate)

        def count(optimizer, *_):
            self.steps += 1
            self.seen[int(self.steps)] = optimizer.param_groups[0]["lr"]

        optimizer.register_step_post_hook(count)
        return optimizer

    def configure_optimizers(self):
        optimizer = self.counted(0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch, index):
        return self.weight(batch).square().mean()

    def on_train_batch_end(self, *_):
        self.log("train/true", self.steps)

    def validation_step(self, batch, index):
        self.log("val/true", self.steps)


class TwoLines(Line):
    """Two optimisers under manual optimisation, of which one counts as steps."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = torch.nn.Linear(1, 1)

    def configure_optimizers(self):
        optimizers = self.counted(0.1), torch.optim.SGD(self.other.parameters(), 0.2)
        schedules = [
            {"scheduler": torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1.0), "name": name}
            for o, name in zip(optimizers, ("generator", "discriminator"), strict=True)
        ]
        return list(optimizers), schedules

    def training_step(self, batch, index):
        for optimizer, network in zip(self.optimizers(), (self.weight, self.other), strict=True):
            self.manual_backward(network(batch).square().mean())
            (optimizer if network is self.weight else optimizer.optimizer).step()


@pytest.fixture
def fit(tmp_path):
    def run(line, steps, loggers, callbacks=(), checkpoint=None, accumulate=1):
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=loggers,
            callbacks=[StepAxis(), *callbacks],
            accumulate_grad_batches=accumulate,
            log_every_n_steps=1,
            val_check_interval=3 * accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = DataLoader(torch.ones(50, 1)), DataLoader(torch.ones(2, 1))
        trainer.fit(line, *data, ckpt_path=checkpoint, weights_only=True)
        return trainer

    return run


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    """W&B as on a machine that has never seen it."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "wandb"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # settings are read once a process
    yield
    wandb.teardown()


def rows(run):
    with (run / "logs" / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def history(path):
    """Metrics of each call, nested names joined."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            yield {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }


def offline_files(run):
    """The offline runs of a folder, in the order of their making."""
    wandb.teardown()  # its service writes the end of a file when it ends
    return sorted(run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime)


@pytest.mark.parametrize(("line", "accumulate"), [(Line, 1), (Line, 2), (TwoLines, 1)])
def test_x_is_the_number_of_steps_over_a_stop(fit, tmp_path, line, accumulate):
    for steps, checkpoint in ((4, None), (9, tmp_path / "a.ckpt")):
        trainer = fit(
            line(),
            steps,
            make_loggers(CSVConfig(), tmp_path, "a", {}),
            checkpoint=checkpoint,
            accumulate=accumulate,
        )
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        assert trainer.global_step == steps
    found = rows(tmp_path)
    train = [row for row in found if "train/true" in row]
    val = [row for row in found if "val/true" in row]
    assert [row["step"] for row in train] == list(range(1, 10))
    assert all(row["step"] == row["train/true"] for row in train)
    assert [row["step"] for row in val] == [row["val/true"] for row in val] == [3, 6, 9]


def test_the_csv_file_is_added_to_at_every_start(tmp_path, recwarn):
    for start, names in enumerate((["a", "b"], ["b"], ["b", "c"])):
        (logger,) = make_loggers(CSVConfig(), tmp_path, "a", {})
        logger.log_metrics(dict.fromkeys(names, float(start)), step=start)
        logger.save()
    assert rows(tmp_path) == [
        {"a": 0, "b": 0, "step": 0},
        {"b": 1, "step": 1},
        {"b": 2, "c": 2, "step": 2},
    ]
    assert not recwarn.list


def test_speed_leaves_validation_out(fit, tmp_path):
    class Slow(Line):
        def training_step(self, batch, index):
            time.sleep(0.02)
            return super().training_step(batch, index)

        def validation_step(self, batch, index):
            time.sleep(0.4)

    line = Slow()
    fit(line, 6, make_loggers(CSVConfig(), tmp_path, "a", {}), [Throughput(8, log_every=2)])
    found = [row for row in rows(tmp_path) if "speed/seconds_per_step" in row]
    assert [row["step"] for row in found] == [2, 4, 6]
    for row in found:
        assert 0.02 <= row["speed/seconds_per_step"] < 0.15
        assert row["speed/samples_per_second"] * row["speed/seconds_per_step"] == pytest.approx(8)
        assert row["lr/network"] == pytest.approx(line.seen[row["step"]])
        assert 0.05 < row["memory/resident_gib"] < 100


def test_both_learning_rates_of_a_gan_are_logged(fit, tmp_path):
    fit(TwoLines(), 2, make_loggers(CSVConfig(), tmp_path, "a", {}), [Throughput(1, log_every=2)])
    (found,) = [row for row in rows(tmp_path) if "lr/generator" in row]
    assert (found["lr/generator"], found["lr/discriminator"]) == (0.1, 0.2)


def test_an_offline_run_holds_metrics_config_and_model(fit, tmp_path, no_account):
    run = tmp_path / "model" / "run"
    loggers = make_loggers(OFFLINE, run, "models/a", {"task": {"lr": 0.5}, "seed": 3})
    fit(Line(), 3, loggers, [Throughput(8, log_every=3)])
    folder = tmp_path / "model"
    (folder / "autoencoder").mkdir()
    for name in ("config.yaml", "autoencoder/weights.safetensors", "run/last.ckpt"):
        (folder / name).write_text("x")
    upload_model(loggers, folder)  # not asked for
    loggers[1].artifacts = True
    upload_model(loggers, folder)
    close_loggers(loggers)

    (path,) = offline_files(run)
    assert (run / "wandb_id").read_text().strip() == path.stem.removeprefix("run-")
    logged = [
        (name, entry["trainer/global_step"], entry[name])
        for entry in history(path)
        for name in ("train/true", "val/true", "speed/seconds_per_step", "lr/network")
        if name in entry
    ]
    assert [entry for entry in logged if entry[0] == "train/true"] == [
        ("train/true", step, step) for step in (1, 2, 3)
    ]
    assert ("val/true", 3, 3) in logged
    assert {name for name, step, _ in logged if step == 3} > {"speed/seconds_per_step"}

    found = {r.WhichOneof("record_type"): r for r in records(path)}
    config = {item.key: json.loads(item.value_json) for item in found["run"].run.config.update}
    assert config["task"] == {"lr": 0.5} and config["seed"] == 3
    assert config["code_version"] == code_version()
    about = found["run"].run
    assert (about.project, about.run_group, list(about.tags)) == ("tests", "g", ["t"])
    assert about.display_name == "models/a"
    uploads = [r for r in records(path) if r.WhichOneof("record_type") == "artifact"]
    (artifact,) = [r.artifact for r in uploads]
    assert (artifact.type, artifact.name) == ("model", "models-a")
    assert {entry.path for entry in artifact.manifest.contents} == {
        "config.yaml",
        "autoencoder/weights.safetensors",
    }


def test_an_offline_run_that_goes_on_is_a_new_run_and_says_so(tmp_path, no_account, capsys):
    identities = []
    for _ in range(2):
        close_loggers(make_loggers(OFFLINE, tmp_path, "a", {}))
        identities.append((tmp_path / "wandb_id").read_text().strip())
    assert identities[0] != identities[1]
    assert len(offline_files(tmp_path)) == 2
    out = capsys.readouterr().out.strip()
    assert len(out.splitlines()) == 1
    assert all(word in out for word in ("cannot resume offline", *identities))


def test_an_online_run_is_resumed_by_its_id(tmp_path, no_account, monkeypatch):
    calls = []

    class Run:
        id = "first"

    def init(**options):
        calls.append(options)
        return Run()

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", init)
    for _ in range(2):
        make_loggers(WandbConfig(entity="e"), tmp_path, "a", {})
    assert [call["id"] for call in calls] == [None, "first"]
    assert {call["resume"] for call in calls} == {"allow"}
    assert {(call["mode"], call["entity"], call["project"]) for call in calls} == {
        ("online", "e", "brain_ldm")
    }
    assert (tmp_path / "wandb_id").read_text() == "first\n"


@pytest.mark.parametrize("ask", [check_logger, lambda c: make_loggers(c, Path("run"), "a", {})])
def test_online_without_an_account_is_one_line_before_any_work(ask, workplace, no_account):
    with pytest.raises(InputError) as caught:
        ask(WandbConfig())
    message = str(caught.value)
    assert "\n" not in message
    assert "`wandb login`" in message and "logger.mode=offline" in message
    assert not (workplace / "run").exists()


def test_a_server_that_refuses_is_one_line(no_account, monkeypatch, tmp_path):
    def refuse(**_):
        raise wandb.errors.AuthenticationError("The API key is invalid.\nMore.")

    monkeypatch.setattr(wandb, "login", refuse)
    with pytest.raises(InputError, match=r"^logger=wandb: The API key is invalid; .*offline$"):
        check_logger(WandbConfig())
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(InputError, match=r"^logger=wandb: The API key is invalid; .*offline$"):
        make_loggers(WandbConfig(), tmp_path, "a", {})


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("online", "offline", "offline"),
        ("online", "disabled", "disabled"),
        ("offline", "disabled", "disabled"),
        ("offline", "online", "offline"),
        ("disabled", "offline", "disabled"),
        ("online", None, "online"),
    ],
)
def test_the_environment_can_only_take_the_net_away(monkeypatch, mode, environment, expected):
    monkeypatch.delenv("WANDB_MODE")
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert module.wandb_mode(WandbConfig(mode=WandbMode[mode])).value == expected


def test_disabled_is_no_logger(tmp_path, no_account):
    found = make_loggers(WandbConfig(mode=WandbMode.disabled), tmp_path, "a", {})
    assert len(found) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["rank", "node"])
def test_only_the_first_rank_touches_files_and_net(tmp_path, no_account, monkeypatch, where):
    if where == "rank":
        monkeypatch.setattr(module.rank_zero_only, "rank", 1)
    else:
        monkeypatch.setenv("NODE_RANK", "1")
    run = tmp_path / "run"
    for config in (OFFLINE, WandbConfig()):  # the second would ask for an account
        loggers = make_loggers(config, run, "a", {})
        assert len(loggers) == 2
        upload_model(loggers, tmp_path)
        close_loggers(loggers)
    assert not run.exists()


def test_a_missing_tensorboard_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        make_loggers(TensorBoardConfig(), tmp_path, "a", {})


def test_tensorboard_goes_on_in_its_folder(fit, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an option")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps, checkpoint in ((2, None), (4, tmp_path / "a.ckpt")):
        loggers = make_loggers(TensorBoardConfig(), tmp_path, "a", {})
        fit(Line(), steps, loggers, checkpoint=checkpoint).save_checkpoint(tmp_path / "a.ckpt")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/true")] == [
        (step, step) for step in (1, 2, 3, 4)
    ]


def test_the_code_version_is_the_checkouts_commit_and_no_other(tmp_path, monkeypatch):
    package = tmp_path / "brain_ldm"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(brain_ldm, "__file__", str(package / "__init__.py"))
    plain = brain_ldm.__version__

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert code_version() == plain  # no repository
    git("init")
    assert code_version() == plain  # somebody else's
    git("add", ".")
    git("commit", "-m", "a")
    git("tag", "v9")
    commit = git("rev-parse", "HEAD")[:7]
    assert code_version() == f"{plain}+g{commit}"
    (package / "__init__.py").write_text("1")
    assert code_version() == f"{plain}+g{commit}-dirty"


def documented():
    """Patterns of the keys in docs/dashboards.md."""
    text = (DOCS / "dashboards.md").read_text()
    keys = re.findall(r"`([a-z]+/[a-z0-9_<>]+)`", text)
    return [re.escape(key).replace("<channel>", r"\d+") for key in keys]


def test_every_metric_of_the_callbacks_is_documented(fit, tmp_path):
    fit(TwoLines(), 2, make_loggers(CSVConfig(), tmp_path, "a", {}), [Throughput(1, log_every=2)])
    names = {name for row in rows(tmp_path) for name in row} - {"step", "train/true"}
    assert len(names) == 5
    assert not [n for n in names if not any(re.fullmatch(key, n) for key in documented())]


def test_every_metric_of_the_workspace_is_documented():
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is an option")
    spec = importlib.util.spec_from_file_location("wandb_workspace", DOCS / "wandb_workspace.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    view = script.workspace("somebody", "brains")
    assert (view.entity, view.project) == ("somebody", "brains")
    shown = [
        key
        for section in view.sections
        for panel in section.panels
        for key in getattr(panel, "y", None) or panel.media_keys
    ]
    assert len(shown) > 20
    assert not [n for n in shown if not any(re.fullmatch(key, n) for key in documented())]
    sent = json.loads(view._to_model().model_dump_json(by_alias=True))
    assert "lr/generator" in json.dumps(sent)
    assert {f"{kind}/" for kind in ("train", "lr", "gradient", "speed", "memory", "pictures")} <= {
        f"{key.split('/')[0]}/" for key in shown
    }
