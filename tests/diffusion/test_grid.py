import pytest
from diffusers import DDPMScheduler

from brain_ldm.diffusion.config import Grid
from brain_ldm.diffusion.grid import timesteps


def test_leading_ddim_50_is_the_grid_of_the_paper():
    assert timesteps(Grid.leading, 50, 1000).tolist() == list(range(980, -1, -20))


def test_ends_of_the_other_grids():
    assert timesteps(Grid.trailing, 50, 1000).tolist() == list(range(999, 0, -20))
    assert timesteps(Grid.linspace, 4, 1000).tolist() == [999, 666, 333, 0]
    assert timesteps(Grid.trailing, 1, 1000).tolist() == [999]


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("steps", [2, 3, 5, 7, 10, 20, 33, 50, 100, 250, 300, 999, 1000])
def test_equal_to_diffusers(grid, steps):
    scheduler = DDPMScheduler(num_train_timesteps=1000, timestep_spacing=grid.value)
    scheduler.set_timesteps(steps)
    assert timesteps(grid, steps, 1000).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("total", [1, 2, 17, 200, 1000])
def test_any_number_of_steps_falls_strictly_within_the_schedule(grid, total):
    # diffusers' trailing grid fails this: 61 steps of 1000 are 62, and the last is timestep -1.
    fewest = 1 if grid is Grid.trailing or total == 1 else 2
    for steps in range(fewest, total + 1):
        chosen = timesteps(grid, steps, total).tolist()
        assert chosen == sorted(set(chosen), reverse=True)
        assert len(chosen) == steps and chosen[-1] >= 0 and chosen[0] < total
    assert chosen == list(range(total))[::-1]


@pytest.mark.parametrize("grid", Grid)
@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_more_steps_than_timesteps_or_none_are_refused(grid, steps):
    with pytest.raises(ValueError, match=rf"1\.\.1000 .* got {steps}"):
        timesteps(grid, steps, 1000)


@pytest.mark.parametrize("grid", [Grid.leading, Grid.linspace])
def test_a_single_step_that_would_start_at_timestep_0_is_refused(grid):
    with pytest.raises(ValueError, match="trailing"):
        timesteps(grid, 1, 1000)
