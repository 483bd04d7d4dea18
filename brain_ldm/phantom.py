"""`python -m brain_ldm.phantom`: write a cohort of brains whose age, sex and volumes are known."""

from brain_ldm.cohorts.config import PhantomConfig
from brain_ldm.command import command


@command("phantom", PhantomConfig)
def main(config: PhantomConfig) -> None:
    """Write the cohort that `config` describes."""
    from brain_ldm.cohorts.phantoms import write_phantom_cohort

    write_phantom_cohort(config)


if __name__ == "__main__":
    main()
