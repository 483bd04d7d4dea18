"""Samplers as options of the command."""

from types import SimpleNamespace

import pytest

from brain_ldm.command import conf_folder
from brain_ldm.diffusion.config import DDIMConfig, DPMPP2MConfig, Grid
from brain_ldm.errors import InputError
from brain_ldm.sample import SAMPLERS
from brain_ldm.sampling.config import SampleConfig
from brain_ldm.sampling.generate import check_sampler
from tests.diffusion.toys import ALPHA_BAR


def test_every_sampler_has_its_file():
    assert SAMPLERS.keys() == {path.stem for path in (conf_folder() / "sampler").glob("*.yaml")}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_a_choice_of_the_command(name, one_line):
    options = [f"sampler={name}", "sampler.steps=7", "sampler.grid=linspace", "rescale=0.5"]
    assert "none: no model there" in one_line("sample", "model=none", "n=1", *options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampler": DDIMConfig(eta=2.0)}, r"sampler\.eta is 2\.0; give 0 to 1"),
        ({"sampler": DDIMConfig(), "rescale": 1.5}, r"rescale is 1\.5; give 0 to 1"),
        ({"sampler": DPMPP2MConfig(steps=2000)}, r"sampler: steps must lie within 1\.\.1000"),
        ({"sampler": DPMPP2MConfig(steps=1, grid=Grid.leading)}, "sampler: .* trailing"),
    ],
)
def test_what_no_sampler_can_do_is_told_in_one_line(options, said):
    with pytest.raises(InputError, match=said) as error:
        check_sampler(SampleConfig(model="m", **options), SimpleNamespace(alphas_cumprod=ALPHA_BAR))
    assert "\n" not in str(error.value)
