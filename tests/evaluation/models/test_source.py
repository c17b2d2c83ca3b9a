import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.constants import HF_HUB_OFFLINE
from transformers import AutoTokenizer, T5Config

from osft.errors import EvaluationError, MissingPathError
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.models.source import ModelSource, check_same_vocabulary, find_model

CONFIG = EvaluationConfig(tasks=("anything",))


@pytest.fixture
def folder(tmp_path: Path, base_model: Path) -> Path:
    return Path(shutil.copytree(base_model, tmp_path / "model"))


def find(name: Path | str) -> ModelSource:
    return find_model(str(name), CONFIG)


def test_whole_folder_is_found(base_model: Path) -> None:
    source = find(base_model)

    assert source.folder == base_model
    assert source.vocabulary_size == 259
    assert source.has_chat_template


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "there is no config.json"),
        ("model.safetensors", r"there are no weights \(model.safetensors or model.safetensors.index.json\)"),
        ("tokenizer*", "there is no tokenizer"),
    ],
)
def test_folder_that_is_no_whole_model_is_an_error(folder: Path, missing: str, message: str) -> None:
    for path in folder.glob(missing):
        path.unlink()

    with pytest.raises(EvaluationError, match=message):
        find(folder)


def test_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match="the folder does not exist"):
        find(tmp_path / "nowhere")


@pytest.mark.skipif(not HF_HUB_OFFLINE, reason="asks the Hub unless HF_HUB_OFFLINE=1")
def test_name_that_is_in_no_cache_is_an_error() -> None:
    with pytest.raises(MissingPathError, match="'nobody/nothing' is neither a folder nor a model in the local cache"):
        find("nobody/nothing")


def test_name_that_the_hub_does_not_allow_is_an_error() -> None:
    with pytest.raises(MissingPathError, match="is neither a folder nor a model in the local cache or on the Hub"):
        find("--no name--")


def test_configuration_that_contradicts_itself_is_an_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))

    with pytest.raises(
        EvaluationError, match=r"config.json describes no model \(.*\(3\) must be equal to the number of"
    ):
        find(folder)


def test_encoder_decoder_is_an_error(folder: Path) -> None:
    T5Config(vocab_size=259).save_pretrained(folder)

    with pytest.raises(EvaluationError, match=r"\(t5\) is an encoder-decoder"):
        find(folder)


def test_model_that_is_no_language_model_is_an_error(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))

    with pytest.raises(EvaluationError, match=r"\(vit\) is no causal language model"):
        find(folder)


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    ran = folder / "ran"
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\n")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}})
    )

    with pytest.raises(EvaluationError, match="transformers does not know this model .*is never run"):
        find(folder)

    assert not ran.exists()


def test_tokenizer_without_an_end_is_an_error(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    with pytest.raises(EvaluationError, match="the tokenizer has no eos_token"):
        find(folder)


def test_tokenizer_of_a_vocabulary_and_its_merges_is_read(kit: Any, folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "vocab.json").write_text(json.dumps(kit.byte_tokenizer().get_vocab()))
    (folder / "merges.txt").write_text("#version: 0.2\n")

    source = find(folder)

    assert len(source.tokenizer) == 259


def test_tokenizer_that_is_cut_off_is_an_error(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")

    with pytest.raises(EvaluationError, match="the tokenizer cannot be loaded"):
        find(folder)


def test_models_with_vocabularies_of_other_sizes_are_not_compared(kit: Any, tmp_path: Path, base_model: Path) -> None:
    larger = kit.save_model(tmp_path / "larger", vocab_size=300)

    with pytest.raises(EvaluationError, match="the model's vocabulary has 259 entries in base .* and 300 in tuned"):
        check_same_vocabulary(find(base_model), find(larger))


def test_tokenizers_of_other_sizes_are_not_compared(kit: Any, folder: Path, base_model: Path) -> None:
    tokenizer = kit.byte_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)

    with pytest.raises(EvaluationError, match="the tokenizer has 259 entries in base .* and 260 in tuned"):
        check_same_vocabulary(find(base_model), find(folder))


def test_tokenizers_with_other_ids_are_not_compared(folder: Path, base_model: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(content))

    with pytest.raises(EvaluationError, match="give the same tokens other ids"):
        check_same_vocabulary(find(base_model), find(folder))


def change_tokenizer(folder: Path, **settings: str | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, token in settings.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)


def test_tokenizers_of_which_one_begins_every_text_are_not_compared(folder: Path, base_model: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))

    with pytest.raises(EvaluationError, match="make other tokens of one text: .* Save the base model's tokenizer"):
        check_same_vocabulary(find(base_model), find(folder))


def test_tokenizers_with_another_token_in_front_of_a_text_are_not_compared(folder: Path, base_model: Path) -> None:
    change_tokenizer(folder, eos_token="<|endoftext|>")

    with pytest.raises(EvaluationError, match=r"is <\|im_end\|> for base .* and <\|endoftext\|> for tuned .* Save the"):
        check_same_vocabulary(find(base_model), find(folder))


def test_another_end_of_an_answer_is_compared_where_a_text_begins_alike(tmp_path: Path, folder: Path) -> None:
    change_tokenizer(folder, bos_token="<|endoftext|>")
    tuned = Path(shutil.copytree(folder, tmp_path / "tuned"))
    change_tokenizer(tuned, eos_token="<|im_start|>")

    check_same_vocabulary(find(folder), find(tuned))

    assert find(tuned).tokenizer.eos_token != find(folder).tokenizer.eos_token


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_vllm_that_is_not_installed_is_an_error_that_says_what_to_install(base_model: Path) -> None:
    config = EvaluationConfig(tasks=("anything",), backend="vllm")

    with pytest.raises(EvaluationError, match=r"the package vllm is not installed. Install it \(pip install vllm\)"):
        find_model(str(base_model), config)


def cached_model(cache: Path, name: str, source: Path) -> Path:
    """Lay a model into a cache of the Hub."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("c0ffee")
    return Path(shutil.copytree(source, root / "snapshots" / "c0ffee"))


@pytest.mark.skipif(not HF_HUB_OFFLINE, reason="asks the Hub unless HF_HUB_OFFLINE=1")
def test_name_is_the_folder_of_its_snapshot_in_the_cache(
    tmp_path: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = cached_model(tmp_path, "someone/something", base_model)

    source = find("someone/something")

    assert source.name == "someone/something"
    assert source.folder == snapshot


@pytest.mark.skipif(not HF_HUB_OFFLINE, reason="asks the Hub unless HF_HUB_OFFLINE=1")
def test_snapshot_without_its_weights_is_an_error(
    tmp_path: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (cached_model(tmp_path, "someone/something", base_model) / "model.safetensors").unlink()

    with pytest.raises(
        EvaluationError, match="model 'someone/something': there are no weights .* or download it whole"
    ):
        find("someone/something")
