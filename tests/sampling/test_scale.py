"""One set by many calls: the same files, verified, and made whole again."""

import json
import multiprocessing
import os
import shutil
from concurrent.futures import wait
from pathlib import Path
from threading import Thread

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from brain_ldm.cohorts.cohort import open_cohort
from brain_ldm.cohorts.writer import CohortWriter
from brain_ldm.diffusion.config import DDIMConfig
from brain_ldm.models import Diffusion, open_model
from brain_ldm.precision import Precision
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.drawing import draw_batches, draw_images
from brain_ldm.sampling.generate import sample_cohort
from brain_ldm.sampling.requests import requested_rows
from brain_ldm.sampling.writers import Writers
from tests.bids import bids_errors
from tests.sampling.tiny import files_of, save_tiny_diffusion

N = 11  # in batches of 2, the last one half full
CPU = torch.device("cpu")
GATE = multiprocessing.get_context("fork").Semaphore(0)  # shared with forked writers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_diffusion(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def options(model):
    return [
        f"model={model}", f"n={N}", "seed=3", "batch_size=2", "sampler.steps=3",
        "precision=32-true", "writers=0",
    ]  # fmt: skip


@pytest.fixture
def sample(options, run_command, workplace):
    def run(*more):
        code, out, err = run_command("sample", *options, *more)
        assert code == 0, err
        return out

    return run


@pytest.fixture(scope="module")
def original(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("cohorts") / "drawn"
    config = SampleConfig(str(model), str(root), n=N, seed=3, batch_size=2, writers=0)
    config.sampler, config.precision = DDIMConfig(steps=3), Precision["32-true"]
    sample_cohort(config)
    return root


@pytest.fixture
def drawn(original, workplace):
    """A finished set, to be damaged."""
    shutil.copytree(original, "drawn")
    return Path("drawn")


def image_of(root, index):
    pid = f"sub-003{index:06d}"
    return Path(root, pid, "anat", f"{pid}_space-MNI152NLin2009aSym_desc-synth_T1w.nii.gz")


def test_shards_and_ranks_give_the_files_of_one_call(drawn, sample, monkeypatch):
    for shard in (1, 0):
        said = sample("out=shards", f"shard={shard}/2", "writers=2")
    assert "11 brains" in said
    assert files_of("shards") == files_of(drawn)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for shard, rank in ((0, 0), (1, 0), (1, 1), (0, 1)):
        monkeypatch.setenv("RANK", str(rank))
        said = sample("out=ranks", f"shard={shard}/2", "writers=0")
        assert ("brains are left" in said) == ((shard, rank) != (0, 1))
    assert files_of("ranks") == files_of(drawn)


def test_more_processes_than_batches_are_told(sample):
    said = sample("out=few", "shard=6/7")
    assert "6 batches for 7 processes" in said and "11 of 11 brains are left" in said


@pytest.mark.parametrize("sampler", [[], ["sampler.eta=1"]])
def test_a_batch_begun_is_gone_on_with_to_the_bit(sampler, sample, monkeypatch):
    sample("out=whole", *sampler)
    add, count = CohortWriter.add, 0

    def fail_in_a_batch(self, row, image):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        add(self, row, image)

    with monkeypatch.context() as patch:
        patch.setattr(CohortWriter, "add", fail_in_a_batch)
        with pytest.raises(AssertionError, match="stopped"):
            sample("out=stopped", *sampler)
    assert len(list(Path("stopped/.unfinished/rows").iterdir())) == 3
    sample("out=stopped", *sampler)
    assert files_of("stopped") == files_of("whole")


@pytest.mark.parametrize(
    "name",
    [
        *("manifest.tsv", ".bidsignore", "participants.tsv", "participants.json"),
        *("dataset_description.json", "covariates.png", "README.md"),
    ],
)
def test_a_set_killed_while_it_is_finished_is_gone_on_with(name, drawn, sample, monkeypatch):
    replace = Path.replace

    def die_at(self, target):
        if Path(target).name == name:
            raise KeyboardInterrupt  # the temporary file stays, as after SIGKILL
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die_at)
        with pytest.raises(AssertionError, match="stopped"):
            sample("out=stopped")
    left = [path for path in files_of("stopped") if Path(path).name.endswith(f"_{name}")]
    assert len(left) == 1
    said = sample("out=stopped")
    assert "11 brains" in said and "done already" not in said
    assert files_of("stopped") == files_of(drawn)


@pytest.mark.parametrize("name", ["identity.json", "manifest.tsv", "covariates.png", "README.md"])
def test_a_disk_that_fills_up_while_a_set_is_begun_or_finished_is_one_line(
    name, drawn, options, sample, one_line, monkeypatch
):
    replace = Path.replace

    def full(self, target):
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        line = one_line("sample", *options, "out=full")
    assert "full: cannot be written (No space left on device)" in line
    assert "the same command goes on" in line
    sample("out=full")
    assert files_of("full") == files_of(drawn)


def test_a_row_that_a_power_cut_has_torn_is_drawn_again(drawn, sample):
    sample("out=torn", "shard=0/2")
    rows = Path("torn/.unfinished/rows")
    for index, torn in enumerate(("", '{"participant')):
        (rows / f"sub-003{index:06d}.json").write_text(torn)
    assert "2 of 11 brains are left" in sample("out=torn", "shard=1/2")
    sample("out=torn")
    assert files_of("torn") == files_of(drawn)
    # Of a finished set, the manifest still knows the brain.
    image_of("torn", 4).unlink()
    rows.mkdir(parents=True)
    (rows / "sub-003000000.json").touch()
    sample("out=torn")
    assert files_of("torn") == files_of(drawn)


@pytest.mark.parametrize("name", ["rows", ".unfinished", None])
def test_a_set_killed_while_it_is_tidied_is_tidied_by_the_next_call(
    name, drawn, sample, monkeypatch
):
    remove, work = shutil.rmtree, Path("stopped/.unfinished")

    def die_at(path, **options):
        if Path(path).name == name:
            raise KeyboardInterrupt
        remove(path, **options)

    if name is None:
        sample("out=stopped")
        work.mkdir()  # killed at the very last
    else:
        with monkeypatch.context() as patch:
            patch.setattr("brain_ldm.cohorts.writer.shutil.rmtree", die_at)
            with pytest.raises(AssertionError, match="stopped"):
                sample("out=stopped")
    assert work.exists()
    sample("out=stopped")
    assert not work.exists() and files_of("stopped") == files_of(drawn)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_brain_does_not_depend_on_its_batch(model, eta):
    """At equal size to rounding, wherever it stands and whoever stands beside it; nor on size."""
    network = open_model(model, Diffusion)
    config = SampleConfig(n=8, seed=1, sampler=DDIMConfig(steps=5, eta=eta))
    rows = requested_rows(config, network.encoder)
    with torch.inference_mode():
        images = draw_images(network, rows, config, CPU)
        turned = draw_images(network, rows.iloc[::-1].reset_index(drop=True), config, CPU).flip(0)
        alone = torch.cat(
            [
                draw_images(network, rows.iloc[[i]].reset_index(drop=True), config, CPU)
                for i in range(8)
            ]
        )
    assert (images[0] - images[1]).abs().max() > 0.05
    assert torch.allclose(images, turned, rtol=0, atol=1e-5)
    assert torch.allclose(images, alone, rtol=0, atol=1e-5)


def test_batches_come_in_order_with_their_rows(model):
    network = open_model(model, Diffusion)
    config = SampleConfig(n=5, sampler=DDIMConfig(steps=2), batch_size=2)
    rows = requested_rows(config, network.encoder)
    batches = [rows.iloc[i : i + 2].reset_index(drop=True) for i in (0, 2, 4)]
    with torch.inference_mode():
        for (batch, images), asked in zip(
            draw_batches(network, batches, config, CPU), batches, strict=True
        ):
            assert batch is asked and images.dtype == np.float32
            assert np.array_equal(images, draw_images(network, asked, config, CPU)[:, 0].numpy())


@pytest.mark.parametrize(
    ("storage", "kind", "step"),
    [("int16", np.int16, 1 / 4096), ("uint8", np.uint8, 1 / 255), ("float32", np.float32, 0)],
)
def test_intensities_are_stored_as_asked(model, sample, storage, kind, step):
    sample("out=stored", f"storage={storage}", "n=2")
    config = SampleConfig(n=2, seed=3, sampler=DDIMConfig(steps=3))
    network = open_model(model, Diffusion)
    rows = requested_rows(config, network.encoder)
    with torch.inference_mode():
        images = draw_images(network, rows, config, CPU)[:, 0].numpy()
    cohort = open_cohort("stored")
    for index, image in enumerate(images):
        assert nib.load(image_of("stored", index)).get_data_dtype() == kind
        found = cohort.read(rows["participant_id"][index])
        assert np.abs(found - image).max() <= step / 2 + 1e-7


def test_parts_are_cohorts_of_their_own(drawn, sample, run_command):
    for shard in range(3):
        sample("out=parts", "folder_size=4", f"shard={shard}/3")
    roots = sorted(Path("parts").iterdir())
    assert [root.name for root in roots] == ["part-000", "part-001", "part-002"]
    tables = [open_cohort(root).table for root in roots]
    assert [len(table) for table in tables] == [4, 4, 3]
    whole = open_cohort(drawn)
    assert list(pd.concat(tables)["seed"]) == list(whole.table["seed"])
    for index, root in ((0, roots[0]), (5, roots[1]), (10, roots[2])):
        assert image_of(root, index).read_bytes() == image_of(drawn, index).read_bytes()
    assert bids_errors(roots[2]) == []
    assert "part 3 of 3 of a larger set" in (roots[2] / "README.md").read_text()
    code, out, _ = run_command("sample", "out=parts", "verify=true")
    assert code == 0 and "parts: 11 brains, every file as the manifest says" in out
    assert "done already" in sample("out=parts", "folder_size=4")
    shutil.rmtree(roots[1])
    code, _, err = run_command("sample", "out=parts", "verify=true")
    assert code == 2 and "parts/part-001: no such folder" in err


def test_the_manifest_says_what_each_file_was_asked_to_be(drawn, model):
    manifest = pd.read_csv(drawn / "manifest.tsv", sep="\t")
    assert list(manifest) == [
        *("participant_id", "seed", "sex", "age", "model_sha256", "file", "bytes", "sha256")
    ]
    cohort = open_cohort(drawn)
    for name in ("participant_id", "seed", "sex", "age"):
        assert list(manifest[name]) == list(cohort.table[name])
    assert set(manifest["model_sha256"]) == {open_model(model, Diffusion).hash}
    for file, size in zip(manifest["file"], manifest["bytes"], strict=True):
        assert (drawn / file).stat().st_size == size


def flip(root):
    path = image_of(root, 4)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shorten(root, index=4):
    path = image_of(root, index)
    path.write_bytes(path.read_bytes()[:-1])


def repeat_row(root):
    path = root / "manifest.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[3]]) + "\n")


def give_one_seed_to_two(root):
    for name in ("manifest.tsv", "participants.tsv"):
        table = pd.read_csv(root / name, sep="\t", dtype=str, keep_default_na=False)
        table.loc[3, "seed"] = table.loc[2, "seed"]
        table.to_csv(root / name, sep="\t", index=False)


def make_two_alike(root):
    shutil.copy(image_of(root, 2), image_of(root, 3))
    table = pd.read_csv(root / "manifest.tsv", sep="\t", dtype=str)
    table.loc[3, ["bytes", "sha256"]] = table.loc[2, ["bytes", "sha256"]]
    table.to_csv(root / "manifest.tsv", sep="\t", index=False)


def change_grid(root):
    import hashlib

    path = image_of(root, 2)
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 7), np.int16), np.diag([4, 4, 4, 1])), path)
    table = pd.read_csv(root / "manifest.tsv", sep="\t", dtype=str)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    table.loc[2, ["bytes", "sha256"]] = [str(path.stat().st_size), digest]
    table.to_csv(root / "manifest.tsv", sep="\t", index=False)


def edit_text(name, old, new):
    def edit(root):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return edit


def describe(**changes):
    def edit(root):
        path = root / "dataset_description.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def without_column(name, column):
    def edit(root):
        table = pd.read_csv(root / name, sep="\t", dtype=str, keep_default_na=False)
        table.drop(columns=column).to_csv(root / name, sep="\t", index=False)

    return edit


def without_line(name, index):
    def edit(root):
        lines = (root / name).read_text().splitlines()
        del lines[index]
        (root / name).write_text("\n".join(lines) + "\n")

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (describe(GeneratedBy="me"), "drawn/dataset_description.json: GeneratedBy, or Part in it"),
        (describe(GeneratedBy=[]), "drawn/dataset_description.json: GeneratedBy, or Part in it"),
        (describe(GeneratedBy=["me"]), "drawn/dataset_description.json: GeneratedBy, or Part"),
        (describe(GeneratedBy=[{"Part": "1 of 3"}]), "drawn/dataset_description.json: GeneratedBy"),
        (describe(GeneratedBy=[{"Part": 1}]), "put it right, or remove its folder and give the"),
        (flip, "sub-003000004_space-MNI152NLin2009aSym_desc-synth_T1w.nii.gz: other bytes than"),
        (shorten, "bytes, the manifest says"),
        (lambda root: image_of(root, 4).unlink(), "no such file, though the manifest lists it"),
        (lambda root: next(root.glob("sub-*4/anat/*.json")).unlink(), "_T1w.json: no such file"),
        (repeat_row, "sub-003000002: the same participant as"),
        (give_one_seed_to_two, "sub-003000003: the same seed as drawn/manifest.tsv: sub-003000002"),
        (make_two_alike, "sub-003000003: the same image as drawn/manifest.tsv: sub-003000002"),
        (change_grid, "8×8×7 voxels"),
        (lambda root: (image_of(root, 4).parent / ".1_x.nii.gz").touch(), "not on manifest.tsv"),
        (lambda root: (root / "sub-9").mkdir() or (root / "sub-9/x").touch(), "sub-9/x: not on"),
        (without_line("participants.tsv", 3), "sub-003000002: not in participants.tsv"),
        (edit_text("participants.tsv", "\tF\t", "\tM\t"), "sex is M, manifest.tsv says F"),
        (edit_text("manifest.tsv", "sha256\n", "sha\n"), "column sha256 is missing"),
        (lambda root: (root / "dataset_description.json").unlink(), "or remove its folder and"),
        (lambda root: (root / "manifest.tsv").unlink(), "or remove its folder and give"),
        (lambda root: (root / "participants.tsv").unlink(), "participants.tsv: no such file"),
        (lambda root: next(root.glob("sub-*4/anat/*.json")).write_text(""), "not readable JSON"),
        (without_column("participants.tsv", "seed"), "column seed: missing, though manifest.tsv"),
        (lambda root: (root / ".unfinished").mkdir(), "has not come to its end"),
    ],
)  # fmt: skip
def test_verify_finds(drawn, one_line, damage, said):
    (drawn / "findings.tsv").write_text("of an earlier call")
    damage(drawn)
    assert said in one_line("sample", "out=drawn", "verify=true")
    assert not (drawn / "findings.tsv").exists()


def test_verify_tells_parts_and_rows_of_another_model(sample, run_command):
    sample("out=drawn", "folder_size=4")
    change = edit_text("dataset_description.json", '"ModelHash": "', '"ModelHash": "0')
    change(Path("drawn/part-001"))
    code, _, err = run_command("sample", "out=drawn", "verify=true")
    assert code == 2 and "5 findings" in err
    findings = Path("drawn/findings.tsv").read_text()
    assert "ModelHash is not that of drawn/part-000" in findings
    assert findings.count("of another model than the cohort's") == 4


def test_shards_of_another_precision_or_batch_size_do_not_mix(options, run_command, one_line):
    code, _, err = run_command("sample", *options, "out=drawn", "shard=0/2")
    assert code == 0, err
    other = [o for o in options if not o.startswith(("precision", "batch_size"))]
    line = one_line("sample", *other, "batch_size=2", "precision=bf16-mixed", "out=drawn")
    assert "Precision is '32-true' there, asked 'bf16-mixed'" in line
    line = one_line("sample", *other, "batch_size=3", "precision=32-true", "out=drawn")
    assert "BatchSize is 2 there, asked 3" in line


def test_a_writer_killed_in_a_finished_set_leaves_nothing(drawn, sample, run_command):
    image_of(drawn, 4).unlink()
    (drawn / ".unfinished" / "rows").mkdir(parents=True)
    (image_of(drawn, 5).parent / ".1_x.nii.gz").touch()
    sample("out=drawn")
    code, _, err = run_command("sample", "out=drawn", "verify=true")
    assert code == 0, err


def test_what_goes_wrong_in_the_networks_is_one_line(options, one_line, workplace, monkeypatch):
    def numbers_that_are_none(*_):
        return torch.full((2, 1, 8, 8, 8), torch.nan)

    def too_little_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for wrong, said in (
        (numbers_that_are_none, "sub-003000000 came out as numbers that are none"),
        (too_little_memory, "2 brains at once need more memory than cpu has; give a smaller"),
    ):
        monkeypatch.setattr("brain_ldm.sampling.drawing.draw_images", wrong)
        assert said in one_line("sample", *options, f"out={wrong.__name__}")


def test_verify_tells_all_at_once(drawn, run_command):
    flip(drawn)
    image_of(drawn, 5).unlink()
    repeat_row(drawn)
    code, _, err = run_command("sample", "out=drawn", "verify=true")
    assert code == 2 and "3 findings in drawn: see the table above, all in drawn" in err
    assert len((drawn / "findings.tsv").read_text().splitlines()) == 4
    assert not [error for error in bids_errors(drawn) if "findings" in error.get("location", "")]


def test_verify_tells_what_is_no_set(workplace, one_line):
    assert "nowhere: no such folder" in one_line("sample", "out=nowhere", "verify=true")
    Path("empty").mkdir()
    assert "empty: no finished cohort" in one_line("sample", "out=empty", "verify=true")


def test_what_is_lost_is_drawn_again(drawn, sample, run_command, monkeypatch):
    table = pd.read_csv(drawn / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    table["measured_brain_volume"] = "1000000.0"  # as `measure` would
    table.to_csv(drawn / "participants.tsv", sep="\t", index=False)
    before = files_of(drawn)
    kept = image_of(drawn, 5).stat().st_mtime_ns
    image_of(drawn, 4).unlink()
    shorten(drawn, 9)
    assert "1 of 11 brains are left" in sample("out=drawn", "shard=0/4")  # which has the 9
    for shard in (1, 2, 3):
        sample("out=drawn", f"shard={shard}/4")
    assert files_of(drawn) == before
    assert image_of(drawn, 5).stat().st_mtime_ns == kept
    code, _, err = run_command("sample", "out=drawn", "verify=true")
    assert code == 0, err


@pytest.mark.parametrize(("guidance", "images"), [(1, 8), (0, 2)])
def test_a_sweep_may_share_its_seed_and_without_guidance_its_image(
    guidance, images, options, run_command, workplace
):
    few = [o for o in options if not o.startswith("n=")] + [f"guidance={guidance}"]
    code, _, err = run_command("sample", *few, "sweep=age", "n=4", "noises=2", "out=swept")
    assert code == 0, err
    assert pd.read_csv("swept/manifest.tsv", sep="\t")["sha256"].nunique() == images
    code, out, err = run_command("sample", "out=swept", "verify=true")
    assert code == 0 and "8 brains" in out, err


def test_changed_brains_are_a_set_like_others(options, drawn, run_command):
    few = [o for o in options if not o.startswith(("n=", "batch_size="))]
    older = [*few, "from=drawn", "change={age: 3}", "extrapolate=true", "n=3", "out=older"]
    for shard in (1, 0):
        code, _, err = run_command("sample", *older, "batch_size=2", f"shard={shard}/2")
        assert code == 0, err
    manifest = pd.read_csv("older/manifest.tsv", sep="\t")
    assert manifest["seed"].isna().all()
    before = open_cohort(drawn).table["age"][:3]
    assert np.allclose(open_cohort("older").table["age"], before + 3)
    assert "a brain of the cohort drawn" in Path("older/README.md").read_text()
    code, out, err = run_command("sample", "out=older", "verify=true")
    assert code == 0 and "3 brains" in out, err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("seed=-1", "seed is -1; give at least 0"),
        ("batch_size=0", "batch_size is 0; give at least 1"),
        ("writers=-1", "writers is -1; give at least 0"),
        ("folder_size=0", "folder_size is 0; give at least 1"),
        ("shard=4/4", "shard is 4/4: give i/n"),
        ("model=null", "'model' must be given"),
        ("report=reports/none", "other is not finished; draw it first"),
    ],
)
def test_mistakes_are_told_before_any_work(options, one_line, workplace, option, said):
    assert said in one_line("sample", *options, "out=other", option)
    assert not Path("other").exists()


def test_a_set_with_and_without_parts_are_two(drawn, options, one_line):
    line = one_line("sample", *options, "out=drawn", "folder_size=3")
    assert "drawn: one cohort without parts" in line
    line = one_line("sample", *options, "out=drawn", "storage=uint8")
    assert "Storage is 'int16' there, asked 'uint8'" in line


def test_a_table_that_was_edited_meanwhile_is_told(drawn, options, run_command, one_line):
    few = [o for o in options if not o.startswith("n=")]
    asked = [*few, "table=asked.tsv", "out=tabled"]
    table = pd.read_csv(drawn / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    table.to_csv("asked.tsv", sep="\t", index=False)
    code, out, err = run_command("sample", *asked, "shard=0/2")
    assert code == 0 and "5 of 11 brains are left" in out, err
    table.loc[3, "age"] = "60"
    table.to_csv("asked.tsv", sep="\t", index=False)
    line = one_line("sample", *asked)
    assert "tabled: an unfinished cohort with other parameters (SourceHash is" in line


def test_a_full_disk_is_one_line(options, one_line, workplace, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("brain_ldm.cohorts.writer.write_nifti", full)
    for writers in (0, 1):
        line = one_line("sample", *options, "out=full", f"writers={writers}")
        assert "full: cannot be written (No space left on device)" in line


def pass_gate(path):
    assert GATE.acquire(timeout=60)
    path.touch()


def fail(path):
    raise OSError(path)


def test_writers_hold_back_who_is_faster(tmp_path):
    with Writers(2) as writers:
        for i in range(4):  # two are at work and two wait
            writers.put(pass_gate, tmp_path / f"{i}")
        fifth = Thread(target=writers.put, args=(pass_gate, tmp_path / "4"))
        fifth.start()
        fifth.join(0.2)  # it never ends, however fast or slow the machine
        assert fifth.is_alive() and not list(tmp_path.iterdir())
        GATE.release()
        fifth.join(60)
        assert not fifth.is_alive() and len(list(tmp_path.iterdir())) == 1
        for _ in range(4):
            GATE.release()
    assert len(list(tmp_path.iterdir())) == 5


def test_a_writers_error_is_raised_by_the_next_put(tmp_path):
    with pytest.raises(OSError, match="x"), Writers(1) as writers:
        writers.put(fail, "x")
        wait(writers.waiting)
        writers.put(Path.touch, tmp_path / "never")
        raise AssertionError("not reached")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="y"), Writers(1) as writers:
        writers.put(fail, "y")  # the last one


def die(*_):
    os.kill(os.getpid(), 9)


def test_a_writer_that_dies_is_told(options, one_line, workplace, monkeypatch):
    monkeypatch.setattr("brain_ldm.cohorts.writer.write_nifti", die)
    line = one_line("sample", *options, "out=dead", "writers=1")
    assert "dead: a writing process died" in line and "fewer writers" in line


def test_no_writer_outlives_its_command(sample):
    sample("out=ended", "writers=2", "n=2")
    assert not multiprocessing.active_children()
    assert (
        json.loads(Path("ended/dataset_description.json").read_text())["GeneratedBy"][0]["Storage"]
        == "int16"
    )
