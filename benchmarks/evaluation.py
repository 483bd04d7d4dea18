"""How long `evaluate` takes, and how much memory, by the number of brains.

As many phantoms stand for synthetic brains as are real ones: what measures them does the same work.
Everything is on: features, volumes, age, pairs, embedding, latents, pixels and planted copies. Each
evaluation starts from an empty cache; the last one is killed half-way, and gone on with. Needs
`make demo` and `train experiment=embedding_demo`. Run: .venv/bin/python benchmarks/evaluation.py
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SEEDS = {"real": 3, "synthetic": 4}
MODELS = ("segmenter", "brain_age", "ae", "embedding")


def main() -> None:
    """Print seconds and peak resident memory for each number of brains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--brains", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--out", default="reports/benchmark_evaluation")
    args = parser.parse_args()
    for name in MODELS:
        if not Path(f"models/{name}_demo").is_dir():
            print(f"models/{name}_demo is not there: make demo, train experiment=embedding_demo")
            return
    print(f"{'brains':>14} {'seconds':>8} {'GiB at most':>12}")
    for brains in args.brains:
        root = Path(args.out) / str(brains)
        for name, seed in SEEDS.items():
            options = [f"out={root / name}", f"n={brains}", "resolution=4", f"seed={seed}"]
            subprocess.run([sys.executable, "-m", "brain_ldm.phantom", *options], check=True)
        seconds, peak = evaluate(root, "whole")
        print(f"{brains:6} + {brains:5} {seconds:8.0f} {peak:12.2f}", flush=True)
    before = evaluate(root, "killed", end=seconds / 2)[0]
    rest = evaluate(root, "killed")[0]
    same = [(root / cache / "metrics.json").read_text() for cache in ("whole", "killed")]
    said = "the same" if same[0] == same[1] else "ANOTHER"
    print(f"killed after {before:.0f} s and gone on with for {rest:.0f} s: {said} metrics.json")


def evaluate(root: Path, name: str, end: float | None = None) -> tuple[float, float]:
    """Evaluate with a cache of this name, killed after `end` seconds; seconds and peak GiB."""
    options = [
        f"real={root / 'real'}", f"synthetic={root / 'synthetic'}", "features=segmenter",
        f"cache={root / 'cache' / name}", f"out={root / name}",
    ]  # fmt: skip
    if end is not None or name == "whole":
        shutil.rmtree(root / "cache" / name, ignore_errors=True)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "brain_ldm.evaluate", *options], stdout=subprocess.DEVNULL
    )
    if end is not None:
        time.sleep(end)
        process.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    if end is None and status:
        raise SystemExit(f"evaluate ended with status {status}")
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


if __name__ == "__main__":
    main()
