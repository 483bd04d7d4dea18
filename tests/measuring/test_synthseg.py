"""mri_synthseg as its source says it behaves: called, read, and gone on with when it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brain_ldm.cohorts.labels import GROUPS

DATA = Path(os.environ.get("BRAIN_LDM_DATA", Path(__file__).parents[3] / "shared" / "data"))

# SynthSeg 2.0's structures by FreeSurfer's number, in the order of its table's columns.
SIDED = {
    2: "cerebral white matter",
    3: "cerebral cortex",
    4: "lateral ventricle",
    5: "inferior lateral ventricle",
    7: "cerebellum white matter",
    8: "cerebellum cortex",
    10: "thalamus",
    11: "caudate",
    12: "putamen",
    13: "pallidum",
    14: "3rd ventricle",
    15: "4th ventricle",
    16: "brain-stem",
    17: "hippocampus",
    18: "amygdala",
    24: "csf",
    26: "accumbens area",
    28: "ventral DC",
}
MIDDLE = (14, 15, 16, 24)
RIGHT = {2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 10: 49, 11: 50, 12: 51, 13: 52, 17: 53, 18: 54}
RIGHT |= {26: 58, 28: 60}
STRUCTURES = {
    **{n: name if n in MIDDLE else f"left {name}" for n, name in SIDED.items()},
    **{RIGHT[n]: f"right {name}" for n, name in SIDED.items() if n in RIGHT},
}
HEADER = ["subject", "total intracranial", *STRUCTURES.values()]

# Behaves as the program's source does. Each structure's volume is another power of two plus the
# subject's number in 64ths, so that a sum tells which columns are in it.
PROGRAM = f"""#!{sys.executable}
import csv, json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
told = json.loads((here / "told.json").read_text())
with (here / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
options = dict(zip(sys.argv[1:7:2], sys.argv[2:8:2]))
if told.get("broken"):
    print("a warning", file=sys.stderr)
    print("error: FREESURFER_HOME is not set. Please source freesurfer.", file=sys.stderr)
    sys.exit(1)
header = told["header"]
with open(options["--vol"], "w") as file:
    csv.writer(file).writerow(header)
os.makedirs(options["--o"])
errors = []
def shown(value, number):
    return value if isinstance(value, str) else str(value + number / 64)
for path in sorted(pathlib.Path(options["--i"]).glob("*nii.gz")):
    subject = path.name.replace(".nii.gz", "")
    time.sleep(told.get("seconds", 0))
    assert path.resolve().is_file()
    if subject in told.get("kills", []):
        os.kill(os.getpid(), 11)
    if subject in told.get("silent", []):
        continue
    if subject in told.get("fails", []):
        print("\\nthe following problem occured with image %s :" % path)
        print("Traceback (most recent call last):\\n  File 'x', line 1, in predict")
        print("Exception: input should have 3 dimensions, had 2\\n")
        print("resuming program execution\\n")
        errors.append(path)
        continue
    number = int(subject.replace("sub-", ""))
    values = [subject] + [shown(told["values"][name], number) for name in header[1:]]
    with open(options["--vol"], "a") as file:
        csv.writer(file).writerow(values)
    (pathlib.Path(options["--o"]) / (subject + "_synthseg.nii.gz")).touch()
    with (here / "done.txt").open("a") as done:
        done.write(subject + "\\n")
if errors:
    print("\\nERROR: some problems occured for the following inputs (see above):")
    print(*errors, sep="\\n")
    sys.exit(1)
"""


class Program:
    """A stand-in for mri_synthseg in a folder of its own, and what became of its calls."""

    def __init__(self, folder):
        self.folder = folder
        self.told = {
            "header": HEADER,
            "values": {name: 2.0**power for power, name in enumerate(HEADER[1:])},
        }

    def tell(self, **how):
        (self.folder / "told.json").write_text(json.dumps(self.told | how))

    def calls(self):
        return [json.loads(line) for line in (self.folder / "calls.jsonl").open()]

    def done(self):
        path = self.folder / "done.txt"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def program(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("freesurfer")
    (home / "bin").mkdir()
    (home / "build-stamp.txt").write_text("freesurfer-linux-ubuntu22_x86_64-7.4.1-20230614\n")
    path = home / "bin" / "mri_synthseg"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    monkeypatch.delenv("FREESURFER_HOME", raising=False)
    program = Program(path.parent)
    program.tell()
    return program


@pytest.fixture
def cohort(tiny_cohort, workplace):
    """Six brains whose volumes are not known."""
    shutil.copytree(tiny_cohort.root, workplace / "brains")
    path = Path("brains/participants.tsv")
    table = pd.read_csv(path, sep="\t", dtype=str).drop(
        columns=["ventricular_volume", "brain_volume"]
    )
    table.head(6).to_csv(path, sep="\t", index=False)
    return Path("brains")


@pytest.fixture
def measure(run_command, cohort):
    def run(*options):
        code, out, err = run_command(
            "measure", f"cohort={cohort}", "segmenter=synthseg", "synthseg.threads=2", *options
        )
        assert code == 0, err
        return out, err

    return run


def check(cohort, missing=()):
    """Volumes are sums over the labels that cohorts.labels counts, structure by structure."""
    table = pd.read_csv(cohort / "participants.tsv", sep="\t", na_values="n/a")
    power = {number: 2.0 ** HEADER[1:].index(name) for number, name in STRUCTURES.items()}
    for row in table.itertuples():
        if row.participant_id in missing:
            assert np.isnan(row.measured_ventricular_volume) and np.isnan(row.brain_volume)
            continue
        own = int(row.participant_id.removeprefix("sub-")) / 64
        for name, groups in (("ventricular", ["ventricle"]), ("brain", ["grey", "white"])):
            labels = [n for group in groups for n in GROUPS[group] if n in power]
            expected = sum(power[n] + own for n in labels)
            found = getattr(row, f"measured_{name}_volume")
            assert found == pytest.approx(expected, abs=0.051)
            assert getattr(row, f"{name}_volume") == found
    assert not list(cohort.glob(".*"))


def test_the_call_and_what_is_read_from_its_table(program, cohort, measure):
    out, err = measure("synthseg.chunk=4", "synthseg.robust=true", "synthseg.cpu=true")
    check(cohort)
    calls = program.calls()
    assert len(calls) == 2
    for call in calls:
        assert call[::2][:3] == ["--i", "--o", "--vol"]
        assert call[6:] == ["--robust", "--threads", "2", "--cpu"]
        assert call[5].endswith(".csv")
    assert "6 brains measured by mri_synthseg --robust (freesurfer-linux-ubuntu22" in out
    described = json.loads((cohort / "participants.json").read_text())
    text = described["measured_brain_volume"]["Description"]
    assert text.endswith(
        "by mri_synthseg --robust (freesurfer-linux-ubuntu22_x86_64-7.4.1-20230614)"
    )
    assert not err
    # Neither threads nor chunks make it another instrument; --fast does.
    out, _ = measure("synthseg.threads=1", "synthseg.robust=true")
    assert "measured already" in out and len(program.calls()) == 2
    out, _ = measure("synthseg.fast=true")
    assert program.calls()[-1][6:] == ["--fast", "--threads", "2"]
    assert "mri_synthseg --robust (freesurfer" in out and "is replaced" in out


def test_columns_are_found_by_name(program, cohort, measure):
    shuffled = [*HEADER[:0:-1], "subject"]
    values = program.told["values"] | {"ctx-lh-unknown": 3.0}
    upper = {name.title() if name != "subject" else name: v for name, v in values.items()}
    program.tell(
        header=["subject", "Ctx-Lh-Unknown", *(n.title() for n in shuffled[:-1])], values=upper
    )
    measure()
    check(cohort)


def test_a_missing_column(program, cohort, one_line, measure):
    program.tell(header=[name for name in HEADER if name != "left accumbens area"])
    line = one_line("measure", f"cohort={cohort}", "segmenter=synthseg")
    assert "'left accumbens area'" in line and "volumes.csv" in line
    program.tell()
    measure()
    check(cohort)


def test_a_scan_that_it_fails_on(program, cohort, measure):
    program.tell(fails=["sub-001"])
    out, err = measure()
    assert len(program.calls()) == 1 and "5 brains measured" in out
    (line,) = err.strip().splitlines()
    assert "sub-001_space" in line and "had 2" in line
    check(cohort, missing=["sub-001"])
    program.tell()
    measure()
    assert len(program.calls()) == 2 and program.done().count("sub-000") == 1
    check(cohort)


@pytest.mark.parametrize("culprit", ["sub-000", "sub-003", "sub-005"])
def test_a_scan_that_kills_it(program, cohort, measure, culprit):
    program.tell(kills=[culprit])
    _, err = measure("synthseg.chunk=4")
    (line,) = err.strip().splitlines()
    assert f"{culprit}_space" in line and "signal 11" in line
    check(cohort, missing=[culprit])
    assert sorted(program.done()) == [f"sub-00{i}" for i in range(6) if f"sub-00{i}" != culprit]


def test_a_scan_that_it_passes_over(program, cohort, measure):
    program.tell(silent=["sub-002"])
    _, err = measure()
    (line,) = err.strip().splitlines()
    assert "sub-002_space" in line and "no volumes" in line
    check(cohort, missing=["sub-002"])


def test_an_unreadable_scan_is_not_handed_to_it(program, cohort, measure):
    path = next(cohort.glob("sub-004/anat/*_T1w.nii.gz"))
    path.write_bytes(path.read_bytes()[:-500])
    _, err = measure()
    assert "sub-004_space" in err and "cannot be read" in err
    check(cohort, missing=["sub-004"])


def test_a_program_that_does_not_work(program, cohort, one_line, measure):
    program.tell(broken=True)
    line = one_line("measure", f"cohort={cohort}", "segmenter=synthseg")
    assert "FREESURFER_HOME is not set" in line and "exit status 1" in line
    assert len(program.calls()) == 2
    program.tell()
    measure()
    check(cohort)


def test_volumes_that_are_no_numbers(program, cohort, one_line, measure):
    for value, part in ((float("nan"), "no finite numbers"), ("much", "could not convert")):
        program.tell(values=program.told["values"] | {"left thalamus": value})
        line = one_line("measure", f"cohort={cohort}", "segmenter=synthseg")
        assert "not one of its 6 brains" in line and "sub-000_space" in line and part in line


def test_no_program(cohort, one_line, workplace, monkeypatch):
    monkeypatch.setenv("PATH", str(workplace))
    line = one_line("measure", f"cohort={cohort}", "segmenter=synthseg")
    assert "no mri_synthseg on the PATH" in line and "segmenter=models/" in line
    assert "synthseg.chunk is 0" in one_line(
        "measure", f"cohort={cohort}", "segmenter=synthseg", "synthseg.chunk=0"
    )


def start(cohort, *options):
    words = ["-m", "brain_ldm.measure", f"cohort={cohort}", "segmenter=synthseg", *options]
    return subprocess.Popen(
        [sys.executable, *words], start_new_session=True, stdout=subprocess.PIPE, text=True
    )


def test_killed_and_gone_on_with(program, cohort, measure):
    program.tell(seconds=0.1)
    process = start(cohort, "synthseg.chunk=4")
    while len(program.done()) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    program.tell()
    assert 2 <= len(program.done()) < 6
    measure("synthseg.chunk=4")
    assert len(program.done()) == len(set(program.done()))
    check(cohort)


def test_shards_at_the_same_time(program, cohort):
    processes = [start(cohort, f"shard={i}/3", "synthseg.chunk=1") for i in range(3)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert sorted(program.done()) == [f"sub-00{i}" for i in range(6)]
    assert "6 brains measured" in "".join(said)
    check(cohort)


def test_names_are_those_of_the_program():
    folder = DATA / "label_maps"
    if not folder.is_dir():
        pytest.skip(f"no label maps at {folder} (set BRAIN_LDM_DATA)")
    numbers = np.load(folder / "synthseg_segmentation_labels.npy")
    names = np.load(folder / "synthseg_segmentation_names.npy")
    known = dict(zip(numbers.tolist(), names.tolist(), strict=True))
    assert {n: name for n, name in known.items() if n} == {
        n: name for n, name in STRUCTURES.items() if n != 24
    }
