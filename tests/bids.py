"""The reference BIDS validator, on a cohort that a test has written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def bids_errors(cohort: Path) -> list[dict]:
    """Return what the validator calls errors; skip the test where it is not installed."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    run = subprocess.run(
        [validator, "--json", str(cohort)], capture_output=True, text=True, timeout=120
    )
    issues = json.loads(run.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]
