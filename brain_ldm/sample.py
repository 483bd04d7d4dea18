"""Draw synthetic brains: `python -m brain_ldm.sample model=models/ldm_demo n=16`."""

from pathlib import Path

from brain_ldm.command import command
from brain_ldm.diffusion.config import (
    DDIMConfig,
    DDPMConfig,
    DPMPP2MConfig,
    DPMPP2MSDEConfig,
)
from brain_ldm.sampling.config import SampleConfig

SAMPLERS = {
    "ddim": DDIMConfig,
    "ddpm": DDPMConfig,
    "dpmpp_2m": DPMPP2MConfig,
    "dpmpp_2m_sde": DPMPP2MSDEConfig,
}


@command("sample", SampleConfig, sampler=SAMPLERS)
def main(config: SampleConfig) -> None:
    """Write a synthetic cohort, or verify one."""
    if config.verify:
        from brain_ldm.sampling.verify import verify

        verify(Path(config.out))
        return
    from brain_ldm.sampling.generate import sample_cohort

    sample_cohort(config)


if __name__ == "__main__":
    main()
