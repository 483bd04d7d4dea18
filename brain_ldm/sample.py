"""Draw synthetic brains: `python -m brain_ldm.sample model=models/ldm_demo n=16`."""

from brain_ldm.command import command
from brain_ldm.diffusion.config import DDIMConfig, DDPMConfig
from brain_ldm.sampling.config import SampleConfig


@command("sample", SampleConfig, sampler={"ddim": DDIMConfig, "ddpm": DDPMConfig})
def main(config: SampleConfig) -> None:
    """Write a synthetic cohort."""
    from brain_ldm.sampling.generate import sample_cohort

    sample_cohort(config)


if __name__ == "__main__":
    main()
