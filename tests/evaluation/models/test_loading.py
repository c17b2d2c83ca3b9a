import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from osft.errors import EvaluationError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.loading import LazyModel
from osft.evaluation.models.source import ModelSource, find_model

CONFIG = EvaluationConfig(tasks=("anything",))


@pytest.fixture(scope="module")
def source(base_model: Path) -> ModelSource:
    return find_model(str(base_model), CONFIG)


def count_layers(model: PreTrainedModel, factor: int) -> int:
    return factor * model.config.num_hidden_layers


def test_what_is_known_of_a_model_does_not_load_it(source: ModelSource, tmp_path: Path) -> None:
    model = LazyModel(source, CONFIG, label="base", memo=tmp_path)

    known = (model.fingerprint, json.dumps(dict(model.identity)))

    assert all(known)
    assert "lm" not in vars(model)


def test_batch_size_and_backend_are_part_of_what_decides_the_numbers(source: ModelSource) -> None:
    other = EvaluationConfig(tasks=("anything",), batch_size="auto")

    identities = [LazyModel(source, config, label="base").identity for config in (CONFIG, other)]

    assert {key for key in identities[0] if identities[0][key] != identities[1][key]} == {"batch_size"}


def test_model_is_loaded_once_and_let_go(source: ModelSource) -> None:
    with LazyModel(source, CONFIG, label="base") as model:
        loaded = model.lm

        assert model.lm is loaded
        assert model.run(count_layers, 3) == 6

    assert "lm" not in vars(model)
    assert loaded.model is None


def test_closed_model_is_loaded_again(source: ModelSource) -> None:
    model = LazyModel(source, CONFIG, label="base")
    model.close()

    layers = model.run(count_layers, 1)

    assert layers == 2


def test_model_that_cannot_be_loaded_is_an_error(tmp_path: Path, base_model: Path) -> None:
    folder = Path(shutil.copytree(base_model, tmp_path / "model"))
    model = LazyModel(find_model(str(folder), CONFIG), CONFIG, label="tuned")
    (folder / "config.json").unlink()

    with pytest.raises(EvaluationError, match="the tuned model '.*' cannot be loaded: ValueError"):
        model.run(count_layers, 1)


def test_model_that_transformers_cannot_make_is_an_error(tmp_path: Path, base_model: Path) -> None:
    folder = Path(shutil.copytree(base_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu7"}))
    model = LazyModel(find_model(str(folder), CONFIG), CONFIG, label="tuned")

    with pytest.raises(EvaluationError, match="the tuned model '.*' cannot be loaded: KeyError: 'relu7'"):
        model.run(count_layers, 1)


def test_served_model_has_no_fingerprint_and_does_not_show_itself(server: Any, base_model: Path) -> None:
    config = EvaluationConfig(tasks=("anything",), backend="openai", base_url=server.url)
    model = LazyModel(find_model(str(base_model), config), config, label="base")

    assert model.fingerprint is None
    with pytest.raises(EvaluationError, match="backend 'openai' does not show the model itself. Use backend hf"):
        model.run(count_layers, 1)
