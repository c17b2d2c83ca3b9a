"""The held-out rows of the new data: read from the file, and asked as an lm-eval task."""

from osft.evaluation.holdout.rows import HoldoutRow, read_holdout
from osft.evaluation.holdout.task import HoldoutTask

__all__ = ["HoldoutRow", "HoldoutTask", "read_holdout"]
