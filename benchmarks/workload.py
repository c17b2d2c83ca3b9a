"""What every variant trains: the same random model, the same random tokens, the same schedule of micro-batches.

Random weights and tokens cost what real ones do, and need no download. All shapes are of the Llama architecture, also
that of Qwen2.5-1.5B, whose biases on q, k and v are left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from osft.errors import ConfigError

SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The sizes of a model."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    vocab_size: int
    tied: bool = False
    """Embeddings and head are one weight."""


# A head of 8192 columns is a small part of the step, as it is in a model of many layers.
CPU_SHAPES = (
    Shape(
        name="hidden 768 x 6 layers", hidden_size=768, intermediate_size=2048, num_layers=6, num_heads=12,
        num_key_value_heads=12, vocab_size=8192,
    ),
    Shape(
        name="hidden 2048 x 1 layer", hidden_size=2048, intermediate_size=5504, num_layers=1, num_heads=16,
        num_key_value_heads=16, vocab_size=8192,
    ),
)  # fmt: skip
GPU_SHAPES = (
    Shape(
        name="Qwen2.5-1.5B", hidden_size=1536, intermediate_size=8960, num_layers=28, num_heads=12,
        num_key_value_heads=2, vocab_size=151_936, tied=True,
    ),
    Shape(
        name="Llama-3.2-3B", hidden_size=3072, intermediate_size=8192, num_layers=28, num_heads=24,
        num_key_value_heads=8, vocab_size=128_256, tied=True,
    ),
    Shape(
        name="Llama-3.1-8B", hidden_size=4096, intermediate_size=14_336, num_layers=32, num_heads=32,
        num_key_value_heads=8, vocab_size=128_256,
    ),
)  # fmt: skip
# To see in seconds that everything runs; its times mean nothing.
SMOKE_SHAPE = Shape(
    name="smoke", hidden_size=64, intermediate_size=160, num_layers=2, num_heads=4, num_key_value_heads=4,
    vocab_size=256,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One shape, and how it is trained."""

    shape: Shape
    device: str
    """``cpu`` or ``cuda``."""

    threads: int
    """CPU threads of a process."""

    rows: int
    """Samples of a micro-batch."""

    tokens_per_row: int
    """Length of each sample; none is padded."""

    unfreeze_rank_ratio: float
    """Share of the singular directions that OSFT trains."""

    @property
    def on_gpu(self) -> bool:
        """Whether bfloat16 and activation checkpointing are used, as the training loop does on a GPU."""
        return self.device == "cuda"


def choose_shapes(names: list[str], *, on_gpu: bool) -> list[Shape]:
    """Return the shapes called ``names``; without names those of the device.

    Raises:
        ConfigError: if there is no such shape.
    """
    if not names:
        return list(GPU_SHAPES if on_gpu else CPU_SHAPES)
    known = {shape.name: shape for shape in (*CPU_SHAPES, *GPU_SHAPES, SMOKE_SHAPE)}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--shape '{unknown[0]}' is not one of: {', '.join(known)}.")
    return [known[name] for name in names]


def build_model(shape: Shape, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a model of ``shape`` with random weights, the same ones for the same arguments."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        tie_word_embeddings=shape.tied,
        use_cache=False,
    )
    torch.manual_seed(SEED)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.train()


def make_tokens(workload: Workload, index: int) -> Tensor:
    """Return micro-batch number ``index``, ``[rows, tokens_per_row]``, int64; the same one for the same number."""
    generator = torch.Generator().manual_seed(index)
    shape = (workload.rows, workload.tokens_per_row)
    return torch.randint(workload.shape.vocab_size, shape, generator=generator).to(workload.device)
