"""A set by four shards that are killed again and again: the files of one uninterrupted run."""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.journeys.runs import files_under, succeed
from tests.sampling.tiny import files_of, save_tiny_diffusion

BRAINS = int(os.environ.get("BRAIN_LDM_BRAINS", 96))  # 5000: the whole proof, in minutes
SHARDS, KILLS, BATCH = 4, 3, max(2, BRAINS // 500)
QUIET = 300  # seconds without a new file that tell a process which hangs from a busy machine
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "brain_ldm.sample")  # fmt: skip


@pytest.fixture
def options(workplace):
    model = save_tiny_diffusion(workplace / "tiny")
    return [
        f"model={model}", f"n={BRAINS}", f"batch_size={BATCH}", "sampler.steps=10",
        "precision=32-true", "licence=CC0-1.0",
    ]  # fmt: skip


def command(folder: str, options: list[str], end: Callable[[], None] | None) -> None:
    """`python -m brain_ldm.sample …` in a process that has imported all that it needs."""
    from brain_ldm.sample import main

    os.chdir(folder)
    sys.argv = ["sample", *options]
    with Path(f"log-{os.getpid()}").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        if end is not None:
            threading.Thread(target=end, daemon=True).start()
        main()


def kill_self(rows: str, names: set[str], more: int, later: float) -> None:
    """SIGKILL this process, whatever it is at, once `more` of these rows have come, and later."""

    def done() -> int:
        with contextlib.suppress(FileNotFoundError):
            return len(names & set(os.listdir(rows)))  # noqa: PTH208
        return 0

    goal = done() + more
    while done() < goal:
        time.sleep(0.002)
    time.sleep(later)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def begin(workplace):
    """Start `sample` in a process of its own: a fork of one that has the imports behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["brain_ldm.sampling.generate", __name__])
    started = []

    def run(*options: str, end: Callable[[], None] | None = None) -> ForkServerProcess:
        process = context.Process(target=command, args=(str(workplace), list(options), end))
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()


def ended_well(process: ForkServerProcess, out: Path) -> str:
    """Wait for a process that must succeed; return what it printed."""
    await_end(process, out)
    process.join()
    said = Path(f"log-{process.pid}").read_text()
    assert process.exitcode == 0, said
    return said


def await_end(process: ForkServerProcess, out: Path) -> None:
    """Wait for a process, not for those that it has started: they notice it a second later.

    However long it takes, as long as files come in `out`.
    """
    files, since = files_under(out), time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(process.pid, 0)
            time.sleep(0.002)
            if time.monotonic() - since > QUIET:
                before, files, since = files, files_under(out), time.monotonic()
                assert files != before, f"{out}: no new file in {QUIET} s"


def test_killed_shards_leave_the_files_of_one_run(options, begin, run_command):
    said = ended_well(begin(*options, "out=whole"), Path("whole"))
    assert f"{BRAINS} brains" in said
    root = Path("killed")
    rows = str(root / ".unfinished" / "rows")

    def shard(number: int) -> list[ForkServerProcess]:
        mine = [*options, f"out={root}", f"shard={number}/{SHARDS}"]
        names = {f"sub-{i:09d}.json" for i in range(BRAINS) if i // BATCH % SHARDS == number}
        killed = []
        for _ in range(KILLS):
            more, later = random.randint(0, len(names) // (4 * KILLS)), random.uniform(0, 0.03)
            killed.append(begin(*mine, end=partial(kill_self, rows, names, more, later)))
            await_end(killed[-1], root)
        ended_well(begin(*mine), root)
        return killed

    with ThreadPoolExecutor(SHARDS) as pool:
        killed = [process for ended in pool.map(shard, range(SHARDS)) for process in ended]
    for process in killed:
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert len(killed) == SHARDS * KILLS
    whole, again = files_of("whole"), files_of(root)
    assert whole.keys() == again.keys() and len(list(root.glob("sub-*"))) == BRAINS
    assert [name for name in whole if whole[name] != again[name]] == []

    code, out, err = run_command("sample", f"out={root}", "verify=true")
    assert code == 0 and f"{BRAINS} brains, every file as the manifest says" in out, err
    flipped, lost, *_ = random.sample(sorted(root.glob("sub-*/anat/*.nii.gz")), 2)
    data = bytearray(flipped.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    flipped.write_bytes(data)
    lost.unlink()
    manifest = root / "manifest.tsv"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, lines[-1]]) + "\n")
    code, _, err = run_command("sample", f"out={root}", "verify=true")
    assert code == 2 and f"3 findings in {root}" in err
    for what in (
        f"{flipped.name}  other bytes than the manifest's sha256 says",
        f"{lost.name}  no such file, though the manifest lists it",
        "the same participant as",
    ):
        assert what in err


def test_two_ranks_of_torchrun_give_the_files_of_one_call(options, start, begin):
    few = [*options[:1], "n=10", *options[2:], "folder_size=6"]
    ended_well(begin(*few, "out=one"), Path("one"))
    said = succeed(start(*few, "out=two", program=TORCHRUN), QUIET, Path("two"))
    assert "two: 10 brains" in said
    assert files_of("two") == files_of("one")
