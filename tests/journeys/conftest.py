"""Runs of `train` in processes of their own."""

import subprocess
import sys

import pytest

from tests.journeys.runs import end


@pytest.fixture
def start(workplace):
    """Start `python -m brain_ldm.train …` in its own process group."""
    started = []

    def run(*options, program=("-m", "brain_ldm.train")):
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        end(process)
