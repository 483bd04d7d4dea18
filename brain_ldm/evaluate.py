"""`python -m brain_ldm.evaluate`: hold synthetic cohorts against a real one, and report."""

from brain_ldm.command import command
from brain_ldm.evaluation.config import EvaluateConfig


@command("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Evaluate synthetic cohorts."""
    from brain_ldm.evaluation.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
