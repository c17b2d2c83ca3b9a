"""Which variants can be asked for."""

import pytest

from benchmarks.variants import choose_variants
from osft.errors import ConfigError


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="--variant 'unknown' is not one of: frozen, sft, osft, "):
        choose_variants(["unknown"])
