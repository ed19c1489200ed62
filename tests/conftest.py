"""What several test files share."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

SHARED = Path(__file__).parents[2] / "shared"
"""Real data and tokenizers, where they are at hand; tests that need them skip without."""
