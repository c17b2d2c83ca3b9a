"""Which shapes can be asked for."""

import pytest

from benchmarks.workload import choose_shapes
from osft.errors import ConfigError


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="--shape 'unknown' is not one of: hidden 768 x 6 layers, "):
        choose_shapes(["unknown"], on_gpu=False)
