"""Whether Liger has kernels for a family."""

import pytest

from osft.training.liger import is_known_family


def test_a_family_without_kernels_is_named_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert not is_known_family("mamba", {"llama", "qwen3"})
    assert is_known_family("qwen3", {"llama", "qwen3"})

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no kernels for 'mamba' models" in caplog.text
