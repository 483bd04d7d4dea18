import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import pytest

from brain_ldm.workers import each


def square(number):
    return number * number


def die_at(folder, fatal, number):
    """Be killed at `fatal`; leave a line a call, and a square."""
    with (folder / str(number)).open("a") as file:
        file.write("x")
    if number == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number)


def refuse(number):
    raise ValueError(f"no {number}")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_done_once(workers):
    results = dict(each(square, range(20), "squares", workers))
    assert results == {n: n * n for n in range(20)}


def test_nothing_to_do():
    assert list(each(square, [], "squares", 2)) == []


def test_a_process_that_dies_takes_nothing_else_with_it(tmp_path):
    job = partial(die_at, tmp_path, 7)
    results = dict(each(job, range(30), "squares", 2, died=lambda n: "died"))
    assert results == {n: "died" if n == 7 else n * n for n in range(30)}
    assert (tmp_path / "7").read_text() == "xx"  # tried once more, by itself


def test_without_a_result_for_the_dead_the_work_ends(tmp_path):
    with pytest.raises(BrokenProcessPool):
        list(each(partial(die_at, tmp_path, 2), range(6), "squares", 2))


def test_an_exception_ends_all_and_keeps_its_type():
    with pytest.raises(ValueError, match="no 0"):
        list(each(refuse, range(1), "squares", 1))
    with pytest.raises(ValueError, match="no"):
        list(each(refuse, range(4), "squares", 2))


def test_a_process_that_dies_while_nobody_waits_takes_nothing_else_with_it(tmp_path):
    job = partial(die_at, tmp_path, 3)
    found = {}
    for item, result in each(job, range(12), "squares", 2, died=lambda n: "died"):
        found[item] = result
        if len(found) == 1:
            time.sleep(
                1
            )  # the pool breaks meanwhile, and is noticed when it is given the next item
    assert found == {n: "died" if n == 3 else n * n for n in range(12)}
