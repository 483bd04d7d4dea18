"""`python -m brain_ldm.preprocess`: raw T1w scans to a cohort in MNI space, with a QC page."""

from brain_ldm.command import command
from brain_ldm.preprocessing.config import PreprocessConfig


@command("preprocess", PreprocessConfig)
def main(config: PreprocessConfig) -> None:
    """Write the cohort that `config` describes."""
    from brain_ldm.preprocessing.preprocess import preprocess

    preprocess(config)


if __name__ == "__main__":
    main()
