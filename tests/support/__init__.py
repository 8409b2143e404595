"""What several tests use."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
DATA = ROOT / "data"  # real weights and texts; not in git
