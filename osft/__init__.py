"""Continual learning for language models with Orthogonal Subspace Fine-Tuning (arXiv:2504.07097)."""

from osft.api import OSFTAlgorithm, osft

__all__ = ["OSFTAlgorithm", "osft"]
