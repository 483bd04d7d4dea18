import pytest

from brain_ldm.errors import InputError
from brain_ldm.shards import parse_shard


def test_a_shard_is_its_number_and_how_many_there_are():
    assert parse_shard("0/1") == (0, 1)
    assert parse_shard("3/16") == (3, 16)


@pytest.mark.parametrize("text", ["4/4", "1", "a/2", "-1/2", "0/0", "0/4 "])
def test_anything_else_is_told_in_one_line(text):
    with pytest.raises(InputError, match="give i/n"):
        parse_shard(text)
