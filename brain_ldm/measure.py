"""`python -m brain_ldm.measure`: ventricular and brain volume of every brain of a cohort."""

from brain_ldm.command import command
from brain_ldm.measuring.config import MeasureConfig


@command("measure", MeasureConfig)
def main(config: MeasureConfig) -> None:
    """Measure a cohort."""
    from brain_ldm.measuring.measure import measure

    measure(config)


if __name__ == "__main__":
    main()
