"""What is computed of many brains, in blocks on disk: memory stays small, and work resumes."""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import brain_ldm
from brain_ldm.errors import InputError
from brain_ldm.progress import track

BLOCK = 16  # items whose arrays are written together
# The code that results come from; what another version of it has computed is computed again.
CODE = ("models.py", "networks/*.py", *(f"evaluation/{name}.py" for name in (
    "features", "gradient_similarity", "instruments", "measure", "similarity", "utility", "window"
)))  # fmt: skip


def stored(
    folder: Path,
    key: dict[str, Any],
    items: Sequence,
    compute: Callable[[Sequence], dict[str, np.ndarray]],
    title: str,
) -> dict[str, np.ndarray]:
    """Return `compute` of all items, (n, ...) each; what an earlier call computed is read.

    Args:
        folder: of all such results.
        key: what a result depends on besides the items, as plain data.
        items: n of them, plain data; those of a block go to `compute` together.
        compute: arrays by name for some items, (items, ...) each.
        title: of the progress bar.

    Raises:
        InputError: the folder cannot be written.
    """
    whole: dict[str, np.ndarray] = {}
    blocks = [items[start : start + BLOCK] for start in range(0, len(items), BLOCK)]
    for number, block in enumerate(track(blocks, title)):
        path = _path(folder, key, block)
        found = _read(path)
        if found is None:
            found = compute(block)
            _write(path, found)
        # One array for all from the start: joining parts would hold everything twice.
        for name, part in found.items():
            if not number:
                whole[name] = np.empty((len(items), *part.shape[1:]), part.dtype)
            whole[name][number * BLOCK : number * BLOCK + len(block)] = part
    return whole


def _path(folder: Path, key: dict[str, Any], block: Sequence) -> Path:
    text = json.dumps(
        [code_hash(), key, list(block)], sort_keys=True, default=lambda array: array.tolist()
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    return folder / digest[:2] / f"{digest[2:34]}.npz"


@cache
def code_hash() -> str:
    """sha256 of `CODE`."""
    package, digest = Path(brain_ldm.__file__).parent, hashlib.sha256()
    for path in sorted(path for pattern in CODE for path in package.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """A block's arrays; None where there is none or it is damaged."""
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be written ({error.strerror}); give cache another folder"
        ) from None
