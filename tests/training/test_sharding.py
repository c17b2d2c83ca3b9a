"""Several processes train what one trains: the same losses, the same invariants, and no more sent than needed."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor.debug import CommDebugMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.distributed import DistributedConfig

from osft.config import TrainingConfig
from osft.processes.group import Processes, process_group
from osft.subspace.attach import attach, merge, project_gradients, trained_weights
from osft.subspace.decomposition import ProtectedSubspace, protect_leading_directions
from osft.subspace.exchange import gather, spread
from osft.subspace.targets import find_targets
from osft.training.loop import train
from osft.training.metrics import read_metrics
from osft.training.model_files import load_model
from osft.training.sharding import empty_copy, shard
from tests.conftest import join_run, run_together

STEPS = 20
VOCABULARY = 64


def make_llama() -> PreTrainedModel:
    """No dimension but the square ones is a multiple of two or three; embeddings and head are shared."""
    config = LlamaConfig(
        vocab_size=VOCABULARY + 1, hidden_size=32, intermediate_size=77, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attention_bias=True, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_mixture() -> PreTrainedModel:
    """Four experts a layer, which three processes cannot share evenly."""
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
        initializer_range=0.2,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config)


def make_gpt2() -> PreTrainedModel:
    """Weights that lie the other way round, in modules with a computation of their own."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, initializer_range=0.2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def make_with_joined_weights() -> PreTrainedModel:
    """Queries, keys, values and gates are stored in one weight, which transformers cuts by rows."""
    config = AutoConfig.for_model(
        "hrm_text", vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=12, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


LOADED = ("llama", "mixture", "gpt2", "joined")
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (make_llama, {}),
    "mixture": (make_mixture, {"unfreeze_rank_ratio": 0.6}),
    "gpt2": (make_gpt2, {}),
    "everything": (make_llama, {"train_other_parameters": True, "unfreeze_rank_ratio": 0.7, "save_memory": True}),
    "adaptive": (make_llama, {"rank_allocation": "adaptive"}),
    "inputs": (make_llama, {"protect_inputs_of": "data.jsonl"}),
}
CASES_OF = {2: tuple(CASES), 3: ("llama", "mixture")}
PAIRS = [(world_size, case) for world_size, cases in CASES_OF.items() for case in cases]


def config_of(case: str, folder: Path, output: str) -> TrainingConfig:
    """Two samples a step: of three processes one has nothing to do, of two one has longer ones."""
    _, options = CASES[case]
    if "protect_inputs_of" in options:
        options = {**options, "protect_inputs_of": str(folder / options["protect_inputs_of"])}
    return TrainingConfig(
        **{
            "model_path": str(folder / case),
            "data_path": str(folder / "data.jsonl"),
            "use_processed_dataset": True,
            "ckpt_output_dir": str(folder / output / case),
            "unfreeze_rank_ratio": 0.25,
            "effective_batch_size": 2,
            "max_tokens_per_gpu": 40,
            "max_seq_len": 40,
            "learning_rate": 5e-3,
            "num_epochs": STEPS // 4,
            "beta2": 0.95,
            **options,
        }
    )


def train_all(local_rank: int, port: int, world_size: int, folder: Path) -> None:
    """Run in a process of its own: train every case together with the others."""
    join_run(local_rank, world_size, port)
    for case in CASES_OF[world_size]:
        train(config_of(case, folder, f"{world_size} processes"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every case was trained by one, two and three processes."""
    folder = tmp_path_factory.mktemp("sharding")
    generator = np.random.default_rng(0)
    with (folder / "data.jsonl").open("wb") as file:
        for length in (5, 17, 9, 30, 12, 7, 21, 40):
            ids = generator.integers(3, VOCABULARY, length).tolist()
            row = {"input_ids": ids, "labels": [-100, -100, *ids[2:]]}
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    for case, (make, _) in CASES.items():
        torch.manual_seed(0)
        make().save_pretrained(folder / case)
        train(config_of(case, folder, "1 processes"))
    return folder


@pytest.fixture(scope="module")
def together(trained: Path) -> Path:
    """The same folder, after several processes trained together as well."""
    for world_size in CASES_OF:
        run_together(train_all, world_size, world_size, trained)
    return trained


def saved(folder: Path, world_size: int, case: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{world_size} processes" / case / "final" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "case"), PAIRS)
def test_several_processes_have_the_losses_of_one(together: Path, world_size: int, case: str) -> None:
    one, several = (
        [step.loss for step in read_metrics(together / f"{count} processes" / case / "metrics.jsonl")]
        for count in (1, world_size)
    )

    assert len(several) == STEPS
    assert several == pytest.approx(one, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "case"), PAIRS)
def test_several_processes_save_the_weights_of_one(together: Path, world_size: int, case: str) -> None:
    one, several = saved(together, 1, case), saved(together, world_size, case)

    assert several.keys() == one.keys()
    for name, weight in one.items():
        torch.testing.assert_close(several[name], weight, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", CASES_OF)
def test_what_several_processes_save_keeps_the_protected_directions(together: Path, world_size: int) -> None:
    before, after = load_file(together / "llama" / "model.safetensors"), saved(together, world_size, "llama")

    for name, weight in before.items():
        update = after[name] - weight
        if not name.endswith("_proj.weight"):
            assert torch.equal(after[name], weight)
            continue
        protected = protect_leading_directions(weight, 0.25)
        assert update.norm() > 1e-3
        assert (protected.left.float().T @ update).norm() < 1e-5 * weight.norm()
        assert (update @ protected.right.float()).norm() < 1e-5 * weight.norm()


def look_into_processes(local_rank: int, port: int, folder: Path) -> None:
    """Run in a process of its own: write what loading gives, what a step sends, and how bfloat16 trains."""
    join_run(local_rank, 2, port)
    with process_group() as processes:
        result = {"loaded": {name: loads_alike(folder / name, processes) for name in LOADED}}
        result |= train_in_bfloat16(folder / "llama", local_rank)
        if processes.is_first:
            (folder / "looked.json").write_bytes(orjson.dumps(result))


def loads_alike(folder: Path, processes: Processes) -> bool:
    """Return whether the processes together have, bit for bit, the weights that one has."""
    together = load_model(str(folder), processes.device, 2).model
    alone = dict(load_model(str(folder), processes.device).model.named_parameters())
    # All are gathered, also behind one that differs: the other process takes part.
    alike = [torch.equal(gather(weight.detach()), alone[name]) for name, weight in together.named_parameters()]
    return all(alike)


def train_in_bfloat16(folder: Path, local_rank: int) -> dict[str, Any]:
    """Train each process on a row of its own; return its losses, what it sent and what it holds."""
    ids = torch.arange(3, 43).reshape(2, 20)
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, distributed_config=DistributedConfig(fsdp_size=2)
    )
    model = empty_copy(loaded)
    targets = find_targets(model)
    root = shard(model, loaded, targets, spread(protect, loaded, targets), train_other_parameters=False)
    # As on a GPU: blocks are computed twice, and must not be gathered more often for it.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    modes = {part: CommDebugMode() for part in ("step", "projection", "movement", "merging")}
    own = ids[local_rank : local_rank + 1]
    losses = take_steps(model, lambda: root(lambda: loss_of(model, own)), modes)
    alone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    attach(alone, find_targets(alone), protect)
    losses_alone = take_steps(alone, lambda: loss_of(alone, ids[:1]) + loss_of(alone, ids[1:]), {})
    losses_together = torch.tensor(losses)
    dist.all_reduce(losses_together)
    weights = [weight for _, weight in trained_weights(model)]
    return {
        "counts": {part: {str(op): n for op, n in mode.get_comm_counts().items()} for part, mode in modes.items()},
        "losses": losses_together.tolist(),
        "losses_alone": losses_alone,
        "dtypes": sorted({str(parameter.dtype) for parameter in root.parameters()}),
        "core_dtypes": sorted({str(weight.core.dtype) for weight in weights}),
        "own_rows": [weight.base.to_local().shape[0] for weight in weights],
        "rows": [weight.base.shape[0] for weight in weights],
        "free_left": sum(weight.left.is_free_basis for weight in weights),
        "free_right": sum(weight.right.is_free_basis for weight in weights),
    }


def protect(name: str, weight: torch.Tensor) -> ProtectedSubspace:
    return protect_leading_directions(weight, 0.25)


def loss_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def take_steps(
    model: PreTrainedModel, loss_of_step: Callable[[], torch.Tensor], modes: Mapping[str, CommDebugMode]
) -> list[float]:
    """Take ten steps and return their losses; each mode counts what a part of the last one sends."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        with modes.get("step", nullcontext()):
            loss = loss_of_step()
            loss.backward()
        with modes.get("projection", nullcontext()):
            project_gradients(model)
        with modes.get("movement", nullcontext()):
            optimizer.step()
        with modes.get("merging", nullcontext()):
            merge(model)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def looked(trained: Path) -> dict[str, Any]:
    for name in set(LOADED) - set(CASES):
        make_with_joined_weights().save_pretrained(trained / name)
    run_together(look_into_processes, 2, trained)
    return orjson.loads((trained / "looked.json").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADED)
def test_several_processes_load_the_weights_that_one_loads(looked: dict[str, Any], name: str) -> None:
    assert looked["loaded"][name]


@pytest.mark.slow
def test_forward_and_backward_send_what_fsdp_sends_and_nothing_else(looked: dict[str, Any]) -> None:
    sent = {op.rpartition(".")[2]: count for op, count in looked["counts"]["step"].items()}

    # Two blocks and what lies outside: gathered for both passes, the outside once; nothing outside is trained.
    assert sent == {"_allgather_base_": 2 * 2 + 1, "_reduce_scatter_base_": 2}
    assert looked["counts"]["movement"] == {}


@pytest.mark.slow
def test_bringing_the_weights_up_to_date_sends_cores_and_bases_once(looked: dict[str, Any]) -> None:
    def gathered(part: str) -> int:
        return sum(n for op, n in looked["counts"][part].items() if "all_gather" in op)

    protected_right = len(looked["rows"]) - looked["free_right"]

    assert gathered("projection") == protected_right
    # The bases of the columns, for their protected part or for the update, and the cores where their rows are mixed.
    assert gathered("merging") == len(looked["rows"]) + looked["free_left"]


@pytest.mark.slow
def test_in_bfloat16_weights_are_kept_in_it_and_what_is_trained_in_float32(looked: dict[str, Any]) -> None:
    assert looked["dtypes"] == ["torch.bfloat16", "torch.float32"]
    assert looked["core_dtypes"] == ["torch.float32"]
    assert looked["losses"] == pytest.approx(looked["losses_alone"], rel=0.02)
    assert looked["losses"][-1] < 0.8 * looked["losses"][0]


@pytest.mark.slow
def test_each_process_keeps_its_rows_of_every_weight(looked: dict[str, Any]) -> None:
    assert looked["own_rows"] == [-(-rows // 2) for rows in looked["rows"]]
