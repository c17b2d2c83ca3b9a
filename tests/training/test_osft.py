"""``osft()`` from the call to the files, on a real small model."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from osft import OSFTAlgorithm, osft
from osft.subspace.decomposition import frozen_rank
from osft.training.metrics import read_metrics
from osft.training.result import TrainingResult
from tests.conftest import short_training

TARGET_SUFFIXES = ("_proj.weight",)


def parameters(model: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return short_training(model, data, output, **{"nproc_per_node": 1, **changes})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def processed_file(tmp_path: Path) -> Path:
    """Rows of token ids, of several lengths, as JSON lines."""
    generator = np.random.default_rng(0)
    path = tmp_path / "processed.jsonl"
    with path.open("wb") as file:
        for length in (5, 17, 9, 30, 12, 7, 21):
            ids = generator.integers(3, 200, length).tolist()
            row = {"input_ids": ids, "labels": [-100, -100, *ids[2:]]}
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return path


def test_a_run_learns_and_leaves_model_metrics_and_chart(tiny_model: Path, messages_file: Path, tmp_path: Path) -> None:
    result = osft(**parameters(tiny_model, messages_file, tmp_path / "out", num_epochs=20, learning_rate=0.05))

    assert result.steps == 40
    assert result.final_loss < result.first_loss / 2
    assert [metrics.step for metrics in read_metrics(result.metrics_file)] == list(range(1, 41))
    assert "<svg" in result.loss_chart.read_text()
    assert AutoTokenizer.from_pretrained(result.final_checkpoint).chat_template
    assert AutoModelForCausalLM.from_pretrained(result.final_checkpoint).num_parameters() > 0
    assert TrainingResult.load(tmp_path / "out") == result
    # Pods under other user ids of the same group read the model.
    assert all(file.stat().st_mode & 0o060 == 0o060 for file in result.final_checkpoint.iterdir())


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_in_the_saved_model_only_free_directions_of_targets_have_moved(
    tiny_model: Path, messages_file: Path, tmp_path: Path, ratio: float
) -> None:
    result = osft(**parameters(tiny_model, messages_file, tmp_path / "out", unfreeze_rank_ratio=ratio))

    before, after = weights(tiny_model), weights(result.final_checkpoint)
    assert before.keys() == after.keys()
    for name, base in before.items():
        if not name.endswith(TARGET_SUFFIXES) or ratio == 0:
            assert torch.equal(after[name], base), name
            continue
        update = after[name].double() - base.double()
        rank = frozen_rank(*base.shape, ratio)
        left, _, right = torch.linalg.svd(base.double(), full_matrices=False)
        # The stored sum is rounded at the weight's size.
        allowed = 1e-5 * (update.norm() + base.double().norm())
        assert update.norm() > 0
        assert (left[:, :rank].T @ update).norm() <= allowed
        assert (update @ right[:rank].T).norm() <= allowed


def test_two_runs_with_one_seed_give_the_same_model_bit_for_bit(
    tiny_model: Path, messages_file: Path, tmp_path: Path
) -> None:
    first = osft(**parameters(tiny_model, messages_file, tmp_path / "first"))
    second = osft(**parameters(tiny_model, messages_file, tmp_path / "second"))
    other = osft(**parameters(tiny_model, messages_file, tmp_path / "other", seed=7))

    files = [run.final_checkpoint / "model.safetensors" for run in (first, second, other)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() != files[2].read_bytes()


def test_micro_batches_do_not_change_what_a_step_computes(
    tiny_model: Path, processed_file: Path, tmp_path: Path
) -> None:
    call = parameters(tiny_model, processed_file, tmp_path / "one", use_processed_dataset=True, num_epochs=3)
    together = osft(**call)
    apart = osft(**{**call, "ckpt_output_dir": str(tmp_path / "many"), "max_tokens_per_gpu": 30})

    losses = [[metrics.loss for metrics in read_metrics(run.metrics_file)] for run in (together, apart)]
    # Sums in another order: some roundings of float32, amplified by six steps.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_two_nodes_meet_at_the_endpoint_and_train_together(
    tiny_model: Path, processed_file: Path, tmp_path: Path, free_port: int, run_in_background: Any
) -> None:
    call = parameters(tiny_model, processed_file, tmp_path / "out", use_processed_dataset=True, nnodes=2, rdzv_id=98765)
    other = run_in_background({**call, "node_rank": 1, "rdzv_endpoint": f"127.0.0.1:{free_port}"})

    result = osft(**call, node_rank=0, rdzv_endpoint=f"0.0.0.0:{free_port}")

    assert other.wait(timeout=120) == 0
    alone = osft(**{**call, "nnodes": 1, "rdzv_id": None, "ckpt_output_dir": str(tmp_path / "alone")})
    assert result.final_loss == pytest.approx(alone.final_loss, rel=1e-5)


def test_checkpoint_at_epoch_saves_a_model_after_each_epoch(
    tiny_model: Path, messages_file: Path, tmp_path: Path
) -> None:
    result = osft(
        **parameters(
            tiny_model, messages_file, tmp_path / "out", num_epochs=2, checkpoint_at_epoch=True,
            save_final_checkpoint=False,
        )
    )  # fmt: skip

    assert result.final_checkpoint is None
    assert [path.name for path in result.epoch_checkpoints] == ["epoch_1", "epoch_2"]
    first, second = (weights(path)["model.layers.0.mlp.up_proj.weight"] for path in result.epoch_checkpoints)
    assert not torch.equal(first, second)


def test_target_patterns_choose_what_moves(tiny_model: Path, messages_file: Path, tmp_path: Path) -> None:
    result = osft(**parameters(tiny_model, messages_file, tmp_path / "out", target_patterns=["q_proj", r"0\.mlp\.up"]))

    before, after = weights(tiny_model), weights(result.final_checkpoint)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    }


def test_a_schedule_with_warmup_and_arguments_as_text_is_followed(
    tiny_model: Path, messages_file: Path, tmp_path: Path
) -> None:
    result = osft(
        **parameters(
            tiny_model, messages_file, tmp_path / "out", num_epochs=4, lr_scheduler="polynomial", warmup_steps=2,
            lr_scheduler_kwargs={"lr_end": "0.001", "power": "1"},
        )
    )  # fmt: skip

    rates = [metrics.learning_rate for metrics in read_metrics(result.metrics_file)]
    assert rates == pytest.approx([0, 0.0025, 0.005, 0.005 - 0.004 / 6, *[0.005 - 0.004 * n / 6 for n in (2, 3, 4, 5)]])


def test_documents_are_trained_in_blocks(tiny_model: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(f'{{"text": "document number {number} of some length"}}\n' for number in range(12)))

    result = osft(
        **parameters(
            tiny_model, documents, tmp_path / "out", is_pretraining=True, block_size=64, document_column_name="text"
        )
    )

    tokens = sum(len(f"document number {number} of some length") + 1 for number in range(12))
    assert result.samples == -(-tokens // 64)


def test_rows_above_max_seq_len_are_left_out(tiny_model: Path, processed_file: Path, tmp_path: Path) -> None:
    result = osft(
        **parameters(tiny_model, processed_file, tmp_path / "out", use_processed_dataset=True, max_seq_len=12)
    )

    assert result.samples == 4


def test_a_bfloat16_model_is_saved_in_bfloat16_and_frozen_weights_are_kept_bit_for_bit(
    tiny_model: Path, messages_file: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(base)

    result = osft(**parameters(base, messages_file, tmp_path / "out"))

    before, after = weights(base), weights(result.final_checkpoint)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert orjson.loads((result.final_checkpoint / "config.json").read_bytes())["dtype"] == "bfloat16"
    assert after.keys() == before.keys()
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_rows(
    tiny_model: Path, processed_file: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(broken)
    tensors = weights(broken)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(RuntimeError, match=r"step 1 of 2: loss nan.*rows \[.*Lower learning_rate"):
        osft(**parameters(broken, processed_file, tmp_path / "out", use_processed_dataset=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unfreeze_rank_ratio": 1.5}, r"unfreeze_rank_ratio=1.5 is not in 0.0 to 1.0"),
        ({"unfreeze_rank_ratio": float("nan")}, r"unfreeze_rank_ratio=nan is not in 0.0 to 1.0"),
        ({"unfreeze_rank_ratio": None}, r"unfreeze_rank_ratio must be given"),
        ({"effective_batch_size": 0}, r"effective_batch_size=0 is not a whole number of at least 1"),
        ({"max_seq_len": 12.5}, r"max_seq_len=12.5 is not a whole number"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0 is not above 0"),
        ({"learning_rate": "fast"}, r"learning_rate='fast' is not a number"),
        ({"step_timeout_minutes": 0}, r"step_timeout_minutes=0 is not above 0"),
        ({"warmup_steps": -1}, r"warmup_steps=-1 is not a whole number from 0"),
        ({"weight_decay": float("inf")}, r"weight_decay=inf is not 0 or more and finite"),
        ({"seed": 1.5}, r"seed=1.5 is not a whole number from 0 to 4294967295"),
        ({"checkpoint_every_steps": 0}, r"checkpoint_every_steps=0 is not a whole number of at least 1"),
        ({"checkpoint_every_minutes": -1.0}, r"checkpoint_every_minutes=-1.0 is not 0 or more and finite"),
        ({"keep_checkpoints": 0}, r"keep_checkpoints=0 is not a whole number of at least 1"),
        ({"resume": "maybe"}, r"resume='maybe' is not one of auto, never, must"),
        ({"checkpoint_at_epoch": "false"}, r"checkpoint_at_epoch='false' is neither True nor False"),
        ({"data_output_dir": 5}, r"data_output_dir=5 is not text"),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, r"lr_scheduler='reduce_lr_on_plateau' is not one of"),
        ({"lr_scheduler_kwargs": "x"}, r"lr_scheduler_kwargs='x' is not a mapping"),
        ({"target_patterns": [1]}, r"target_patterns=\(1,\) is not a list of regular expressions"),
        ({"nnodes": 2, "rdzv_id": 1, "rdzv_endpoint": "a:70000"}, r"has a port above 65535"),
        ({"model_path": ""}, r"model_path='' is not text"),
        ({"backend": "vllm"}, r"backend='vllm' is not one of native, mini-trainer"),
        ({"lr_scheduler": "zigzag"}, r"lr_scheduler='zigzag' is not one of .*cosine"),
        ({"lr_scheduler_kwargs": {"nonsense": "1"}}, r"lr_scheduler='cosine' with lr_scheduler_kwargs=.*nonsense"),
        ({"target_patterns": ["("]}, r"target_patterns: '\(' is not a regular expression"),
        ({"target_patterns": "q_proj"}, r"target_patterns='q_proj' is one string"),
        ({"target_patterns": []}, r"target_patterns=\[\] targets nothing"),
        ({"is_pretraining": True}, r"block_size is None but is_pretraining=True needs it"),
        ({"block_size": 64}, r"block_size=64 is only for is_pretraining=True"),
        ({"is_pretraining": True, "block_size": 999}, r"block_size=999 is above max_seq_len=128"),
        ({"nnodes": 2, "rdzv_id": 1}, r"rdzv_endpoint is None but nnodes=2 needs it"),
        ({"nnodes": 2, "rdzv_id": 1, "rdzv_endpoint": "node0"}, r"rdzv_endpoint='node0' is not 'host:port'"),
        ({"nnodes": 2, "rdzv_endpoint": "a:1"}, r"rdzv_id is None but nnodes=2 needs it"),
        ({"node_rank": 1}, r"node_rank=1 is not in 0 to nnodes-1"),
        ({"beta1": 1.0}, r"beta1=1.0 is not in 0.0 to 1.0 \(excluded\)"),
        ({"learning_rte": 1.0}, r"learning_rte=1.0 is not a parameter.*Did you mean learning_rate"),
    ],
)
def test_a_bad_value_is_a_value_error_that_names_parameter_value_and_what_is_allowed(
    tiny_model: Path, messages_file: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        osft(**{**parameters(tiny_model, messages_file, tmp_path / "out"), **changes})


def test_a_missing_path_is_a_file_not_found_error(tiny_model: Path, messages_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model_path './no-model' does not exist"):
        osft(**{**parameters(tiny_model, messages_file, tmp_path), "model_path": "./no-model"})
    with pytest.raises(FileNotFoundError, match="nobody/no-model"):
        osft(**{**parameters(tiny_model, messages_file, tmp_path), "model_path": "nobody/no-model"})
    with pytest.raises(FileNotFoundError, match=r"data_path 'no\.jsonl' does not exist"):
        osft(**{**parameters(tiny_model, messages_file, tmp_path), "data_path": "no.jsonl"})


def test_a_row_that_cannot_fit_on_a_gpu_is_named(tiny_model: Path, processed_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 4: 30 tokens are more than max_tokens_per_gpu=20"):
        osft(
            **parameters(
                tiny_model, processed_file, tmp_path / "out", use_processed_dataset=True, max_tokens_per_gpu=20
            )
        )


def test_a_model_that_lacks_weights_is_refused_and_not_filled_at_random(
    tiny_model: Path, processed_file: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(tiny_model, torn)
    tensors = weights(torn)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, torn / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(RuntimeError, match=r"lacks weights of its own model: model\.layers\.1\.mlp\.up_proj\.weight"):
        osft(**parameters(torn, processed_file, tmp_path / "out", use_processed_dataset=True))


def test_a_truncated_weights_file_is_a_runtime_error(tiny_model: Path, processed_file: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(tiny_model, torn)
    whole = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(RuntimeError, match=r"model_path '.*torn' cannot be loaded"):
        osft(**parameters(torn, processed_file, tmp_path / "out", use_processed_dataset=True))


def test_each_frozen_weight_keeps_the_dtype_that_it_is_stored_in(
    tiny_model: Path, processed_file: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(tiny_model, mixed)
    tensors = {name: t if "norm" in name else t.bfloat16() for name, t in weights(mixed).items()}
    save_file(tensors, mixed / "model.safetensors", metadata={"format": "pt"})

    result = osft(**parameters(mixed, processed_file, tmp_path / "out", use_processed_dataset=True))

    after = weights(result.final_checkpoint)
    assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in tensors.items()}
    assert torch.equal(after["model.norm.weight"], tensors["model.norm.weight"])
    assert torch.equal(after["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])


def test_a_last_block_of_one_token_which_nothing_predicts_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents.jsonl"
    # 32 characters and the token that ends a document: a block of 32, and one token.
    documents.write_text(f'{{"document": "{"x" * 32}"}}\n')

    result = osft(
        **parameters(
            tiny_model, documents, tmp_path / "out", is_pretraining=True, block_size=32, effective_batch_size=1
        )
    )

    assert result.samples == 1


def test_the_saved_configuration_is_the_one_that_was_asked_for(
    tiny_model: Path, messages_file: Path, tmp_path: Path
) -> None:
    osft(**parameters(tiny_model, messages_file, tmp_path / "out", unmask_messages=True))

    saved = orjson.loads((tmp_path / "out" / "training.json").read_bytes())["config"]
    assert saved["data_path"] == str(messages_file)
    assert saved["unmask_messages"] is True


def test_liger_without_its_package_or_a_gpu_is_a_runtime_error_that_says_what_to_do(
    tiny_model: Path, messages_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="use_liger=True needs"):
        osft(**parameters(tiny_model, messages_file, tmp_path / "out", use_liger=True))


def test_mini_trainer_without_its_package_is_a_runtime_error_that_says_how_to_install_it() -> None:
    with pytest.raises(RuntimeError, match="pip install training-hub"):
        OSFTAlgorithm(backend="mini-trainer")


def test_a_result_of_an_earlier_run_does_not_survive_a_failing_one(
    tiny_model: Path, messages_file: Path, tmp_path: Path
) -> None:
    osft(**parameters(tiny_model, messages_file, tmp_path / "out"))

    with pytest.raises(ValueError, match="matches no linear"):
        osft(**parameters(tiny_model, messages_file, tmp_path / "out", target_patterns=["nothing"], resume="never"))

    with pytest.raises(RuntimeError, match="holds no finished training run"):
        TrainingResult.load(tmp_path / "out")
