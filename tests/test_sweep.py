"""Sweeps: every job is accounted for, whatever the sweeper, the launcher and how the job ends.

Training itself is replaced by a parabola over the learning rate.
"""

import csv
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from brain_ldm.command import conf_folder
from brain_ldm.errors import InputError
from brain_ldm.sweep import Interrupted, Job, best_job, table, write_result

EXPERIMENT = "experiment=brain_age_demo"
HOME = Path("models/brain_age_demo")
OPTUNA = ["hydra/sweeper=optuna", "task.lr=interval(1e-4,1e-2)"]

needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="needs pip install -e '.[sweeps]'"
)
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="needs pip install -e '.[sweeps]'"
)


def parabola(lr):
    return (lr - 0.003) ** 2


@pytest.fixture
def trained(monkeypatch, workplace):
    """Replace training; give the list of configs that were trained. `endings` maps seeds."""
    configs, endings = [], {}

    def train(config):
        configs.append(config)
        if config.seed in endings:
            raise endings[config.seed]
        write_result(config.out, "val/loss", parabola(config.task.lr), 7)
        return parabola(config.task.lr)

    monkeypatch.setitem(sys.modules, "brain_ldm.training.fit", SimpleNamespace(train=train))
    return SimpleNamespace(configs=configs, endings=endings)


def jobs(folder=HOME):
    return json.loads((folder / "sweep.json").read_text())["jobs"]


def states(folder=HOME):
    return [job["state"] for job in jobs(folder)]


def test_a_sweep_ends_with_a_table_and_the_command_of_the_best_job(run_command, trained):
    code, out, err = run_command("train", "-m", EXPERIMENT, "task.lr=0.01,0.004", "seed=5")
    assert code == 0, err
    with (HOME / "sweep.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["task.lr"] for row in rows] == ["0.01", "0.004"]
    assert [float(row["val/loss"]) for row in rows] == pytest.approx(
        [parabola(0.01), parabola(0.004)]
    )
    assert {row["step"] for row in rows} == {"7"} and "seed" not in rows[0]
    assert [config.out for config in trained.configs] == [f"{HOME}/0", f"{HOME}/1"]
    assert [job["value"] for job in jobs()] == [parabola(0.01), parabola(0.004)]
    result = json.loads((HOME / "1/run/result.json").read_text())
    assert result == {
        "metric": "val/loss",
        "value": parabola(0.004),
        "step": 7,
        "overrides": [EXPERIMENT, "task.lr=0.004", "seed=5"],
    }
    lines = out.splitlines()
    header = next(n for n, line in enumerate(lines) if line.startswith("job"))
    assert lines[header].split() == ["job", "task.lr", "val/loss", "step", "state"]
    assert lines[header + 2].split() == ["1", "0.004", "1e-06", "7", "finished"]
    # The command of the best job repeats it.
    again = shlex.split(lines[-1])
    assert again[:3] == ["python", "-m", "brain_ldm.train"]
    code, _, err = run_command("train", *again[3:])
    assert code == 0, err
    assert trained.configs[-1].task == trained.configs[1].task
    assert trained.configs[-1].seed == 5
    assert {path.name for path in HOME.iterdir()} == {
        "0", "1", "run", "multirun.yaml", "sweep.json", "sweep.tsv"
    }  # fmt: skip


def test_a_failed_job_is_one_line_and_does_not_stop_the_others(run_command, trained):
    trained.endings[2] = InputError("cohorts/none: no such\nfolder")
    code, out, err = run_command("train", "-m", EXPERIMENT, "seed=1,2,3")
    assert code == 2
    assert err.splitlines() == ["train: job 1: cohorts/none: no such folder"]
    assert states() == ["finished", "failed", "finished"]
    assert jobs()[1]["error"] == "cohorts/none: no such folder" and jobs()[1]["value"] is None
    assert "best: job 0" in out


def test_a_crashed_job_shows_where_and_does_not_stop_the_others(run_command, trained):
    trained.endings |= {1: InputError("mistake"), 2: RuntimeError("out of memory")}
    code, _, err = run_command("train", "-m", EXPERIMENT, "seed=1,2,3")
    assert code == 1
    assert "Traceback" in err and "train: job 1: RuntimeError: out of memory" in err
    assert states() == ["failed", "crashed", "finished"]


def test_a_value_that_is_not_finite_is_a_failure(run_command, trained, monkeypatch):
    def train(config):
        return float("nan") if config.seed == 1 else 0.5

    monkeypatch.setattr(sys.modules["brain_ldm.training.fit"], "train", train)
    code, out, _ = run_command("train", "-m", EXPERIMENT, "seed=1,2")
    assert code == 2 and "best: job 1" in out
    assert states() == ["failed", "finished"]


def test_a_stopped_job_stops_the_sweep_which_can_be_gone_on_with(run_command, trained):
    sweep = ["-m", EXPERIMENT, "seed=1,2,3"]
    trained.endings[2] = Interrupted("stopped at step 4")
    code, out, err = run_command("train", *sweep)
    assert code == 75
    assert err.splitlines() == ["train: stopped at step 4"]
    assert states() == ["finished", "unfinished"] and "best: job 0" in out
    code, _, err = run_command("train", *sweep)
    assert code == 2 and f"{HOME}: holds an earlier sweep" in err and "resume=auto" in err
    assert states() == ["finished", "unfinished"]
    trained.endings.clear()
    code, _, err = run_command("train", *sweep, "resume=auto")
    assert code == 0, err
    assert states() == ["finished"] * 3


def test_a_single_run_that_is_stopped_has_an_exit_code_of_its_own(run_command, trained):
    trained.endings[2] = Interrupted("stopped at step 4")
    assert run_command("train", EXPERIMENT, "seed=2")[::2] == (75, "train: stopped at step 4\n")


def test_experiments_and_outs_have_sweeps_of_their_own(run_command, trained):
    assert run_command("train", "-m", EXPERIMENT, "seed=1,2")[0] == 0
    assert run_command("train", "-m", EXPERIMENT, "seed=1,2,3", "out=models/other")[0] == 0
    # Groups that are swept have no one choice: the folder says which.
    both = "experiment=brain_age_demo,segmenter_demo"
    assert run_command("train", "-m", both, "seed=3")[0] == 0
    assert len(jobs()) == 2
    assert len(jobs(Path("models/other"))) == 3
    folder = Path("models/brain_age_demo,segmenter_demo")
    assert [job["overrides"][0] for job in jobs(folder)] == [
        "experiment=brain_age_demo",
        "experiment=segmenter_demo",
    ]
    assert [config.out for config in trained.configs[-2:]] == [
        "models/brain_age_demo/0",
        "models/segmenter_demo/1",
    ]


def test_a_sweep_of_a_command_without_a_value(run_command, workplace, monkeypatch):
    done = []
    room = SimpleNamespace(write_phantom_cohort=lambda config: done.append(config.seed))
    monkeypatch.setitem(sys.modules, "brain_ldm.cohorts.phantoms", room)
    code, out, err = run_command("phantom", "-m", "seed=1,2")
    assert code == 0, err
    assert done == [1, 2] and "best" not in out
    (summary,) = Path("multirun").rglob("sweep.json")
    assert states(summary.parent) == ["finished", "finished"]


@needs_optuna
def test_optuna_learns_from_the_values(run_command, trained):
    trials = ["hydra.sweeper.n_trials=3", "hydra.sweeper.direction=minimize"]
    code, _, err = run_command("train", "-m", *OPTUNA, EXPERIMENT, *trials)
    assert code == 0, err
    tried = [config.task.lr for config in trained.configs]
    assert len(set(tried)) == 3 and all(1e-4 <= lr <= 1e-2 for lr in tried)
    found = yaml.safe_load((HOME / "optimization_results.yaml").read_text())
    best = min(tried, key=parabola)
    assert found["best_params"] == {"task.lr": best} and found["best_value"] == parabola(best)
    assert json.loads((HOME / "sweep.json").read_text())["best"] == tried.index(best)


@needs_optuna
def test_optuna_goes_on_after_a_failed_job(run_command, trained):
    trained.endings[2] = InputError("unlucky")
    options = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=9"]
    code, _, err = run_command("train", "-m", *options, EXPERIMENT, "seed=1,2,3", "task.lr=0.01")
    assert code == 2 and "unlucky" in err
    assert sorted(states()) == ["failed", "finished", "finished"]
    found = yaml.safe_load((HOME / "optimization_results.yaml").read_text())
    assert found["best_value"] == parabola(0.01) and found["best_params"]["seed"] != 2


@needs_optuna
@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("hydra.sweeper.storage=sqlite:///study.db", "hydra.sweeper.storage"),
        ("hydra.sweeper.direction=maximize", "hydra.sweeper.direction"),
    ],
)
def test_what_optuna_cannot_do_is_one_line(one_line, trained, option, part):
    assert part in one_line("train", "-m", *OPTUNA, EXPERIMENT, option)
    assert not trained.configs and not HOME.exists()


@needs_submitit
def test_slurm_where_there_is_none_is_one_line(one_line, trained, monkeypatch):
    monkeypatch.setenv("PATH", "")
    line = one_line("train", "-m", "hydra/launcher=submitit_slurm", EXPERIMENT, "seed=1,2")
    assert "srun" in line and not HOME.exists()


def test_an_interval_without_optuna_is_one_line(one_line, trained):
    line = one_line("train", "-m", EXPERIMENT, "task.lr=interval(1e-4,1e-2)")
    assert "hydra/sweeper=optuna" in line


@pytest.mark.parametrize("choice", ["sweeper=optuna", "launcher=submitit_slurm"])
def test_a_missing_package_is_one_line(one_line, trained, monkeypatch, choice):
    one_line("train", "-m", EXPERIMENT, "seed=nothing")  # Hydra looks for plugins once
    group, _, name = choice.partition("=")
    known = ConfigStore.instance().repo["hydra"][group]
    monkeypatch.delitem(known, f"{name}.yaml", raising=False)
    line = one_line("train", "-m", f"hydra/{choice}", EXPERIMENT, "seed=1,2")
    assert f"hydra/{choice}" in line and "pip install -e '.[sweeps]'" in line


DOOR = """
import os, sys
from pathlib import Path
from brain_ldm.cohorts.config import PhantomConfig
from brain_ldm.command import command
from brain_ldm.errors import InputError

@command("phantom", PhantomConfig)
def main(config):
    if config.seed == 3:
        raise InputError("unlucky")
    Path(f"ran_{config.seed}").write_text(str(os.getpid()))
    return config.seed / 2

main()
"""


@needs_submitit
def test_submitit_runs_jobs_in_processes_of_their_own(workplace):
    Path("door.py").write_text(DOOR)
    options = ["hydra/launcher=submitit_local", "hydra.sweep.dir=sweep", "seed=4,3"]
    run = subprocess.Popen(
        [sys.executable, "door.py", "-m", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 2, out
    assert int(Path("ran_4").read_text()) != run.pid
    assert states(Path("sweep")) == ["finished", "failed"]
    assert [job["value"] for job in jobs(Path("sweep"))] == [2.0, None]
    assert "unlucky" in out and "best: job 0" in out


@needs_submitit
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_the_launchers_compose(cluster):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        options = [f"hydra/launcher=submitit_{cluster}", "hydra.launcher.timeout_min=90"]
        config = compose("command", options, return_hydra_config=True)
    assert config.hydra.launcher.timeout_min == 90
    assert cluster in config.hydra.launcher._target_.lower()


def test_the_table_shows_what_varies_and_compares_like_with_like():
    finished = {"state": "finished", "metric": "val/loss", "step": 1}
    found = [
        Job(0, ["a=1", "b=2"], value=0.5, **finished),
        Job(1, ["a=1", "b=3", "+c=4"], value=0.25, **finished),
        Job(2, ["a=1", "b=2"], state="failed", error="why"),
    ]
    assert table(found) == [
        ["job", "b", "+c", "val/loss", "step", "state", "error"],
        ["0", "2", "n/a", "0.5", "1", "finished", "n/a"],
        ["1", "3", "4", "0.25", "1", "finished", "n/a"],
        ["2", "2", "n/a", "n/a", "n/a", "failed", "why"],
    ]
    assert best_job(found) is found[1]
    found[0].metric = "val/mae"
    assert best_job(found) is None
    assert table(found)[0][3] == "value"
