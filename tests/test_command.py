"""The doors' frame: mistakes in one line, help and errors at once, nothing silently accepted."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["experiment=ae_dmo"], ["experiment/ae_dmo", "ae_demo"]),
        (["experiment=ae_demo", "trainer.max_step=3"], ["trainer.max_step", "max_steps"]),
        (["experiment=ae_demo", "+task.loss.l2=3"], ["task.loss.l2", "l1"]),
        (["experiment=ae_demo", "+foo=1"], ["'foo'", "valid here"]),
        (["experiment=ae_demo", "task.lr=fast"], ["task.lr", "fast"]),
        (["experiment=ae_demo", "trainer.precision=16"], ["precision", "bf16-mixed"]),
        ([], ["data.cohort", "experiment="]),
        (["experiment=ae_demo", "seed"], ["seed"]),
    ],
)
def test_a_mistake_in_the_config_is_one_line_that_names_it(one_line, workplace, overrides, parts):
    line = one_line("train", *overrides)
    for part in parts:
        assert part in line
    assert not list(workplace.iterdir())


def test_an_unknown_option_of_another_command(one_line, workplace):
    assert "did you mean" in one_line("sample", "model=m", "sampler.step=3")
    assert "eta" in one_line("sample", "model=m", "sampler=ddpm", "sampler.eta=1")


@pytest.mark.parametrize(
    "words",
    [
        "train --help",
        "train experiment=ae_demo trainer.max_step=3",
        "sample --help",
        "evaluate --help",
        "phantom --help",
        "preprocess --help",
        "measure --help",
        "convert --help",
        "study --help",
    ],
)
def test_help_and_config_errors_load_nothing_heavy(words, workplace):
    name, *overrides = words.split()
    heavy = "torch,monai,lightning,pandas,nilearn,scipy,matplotlib"
    script = (
        f"import sys, importlib; sys.argv = {[name, *overrides]!r}\n"
        "try: importlib.import_module('brain_ldm.' + sys.argv[0]).main()\n"
        "except SystemExit: pass\n"
        f"loaded = sorted(set('{heavy}'.split(',')) & set(sys.modules))\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,  # a hang, not a speed: machines differ, and have other work
    )
    assert done.returncode == 0, done.stderr


def test_env_file_is_read(one_line, workplace, monkeypatch):
    monkeypatch.delenv("BRAIN_LDM_TEST_VALUE", raising=False)
    (workplace / ".env").write_text("BRAIN_LDM_TEST_VALUE=from-file\n")
    assert "from-file" in one_line("sample", "model=${oc.env:BRAIN_LDM_TEST_VALUE}", "n=1")


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    import brain_ldm.cohorts.phantoms as phantoms
    import brain_ldm.phantom

    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantoms, "write_phantom_cohort", interrupted)
    monkeypatch.setattr("sys.argv", ["phantom"])
    with pytest.raises(SystemExit) as stop:
        brain_ldm.phantom.main()
    assert stop.value.code == 75
    assert capsys.readouterr().err == "phantom: stopped\n"
