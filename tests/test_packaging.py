"""The wheel holds the package and its config files, and its commands run from it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--wheel-dir", folder, REPOSITORY]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, *offline], check=True)
    (path,) = folder.glob("*.whl")
    return path


def _files(folder: str) -> set[str]:
    paths = (REPOSITORY / folder).rglob("*")
    return {
        path.relative_to(REPOSITORY).as_posix()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_the_package_and_conf_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    conf = {f"brain_ldm/{name}" for name in _files("conf")}
    assert "brain_ldm/conf/phantom.yaml" in conf
    assert {name for name in names if ".dist-info/" not in name} == _files("brain_ldm") | conf


def test_commands_run_from_the_wheel_with_its_own_config(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)

    def python(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=elsewhere,
            env=os.environ | {"PYTHONPATH": str(site)},
        ).stdout

    found = python("-c", "from brain_ldm.command import conf_folder; print(conf_folder())")
    assert Path(found.strip()) == site / "brain_ldm" / "conf"
    assert "resolution" in python("-m", "brain_ldm.phantom", "--help")
