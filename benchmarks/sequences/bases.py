"""The models that a sequence starts from: the demo's, and a GPT-2 of about its size.

GPT-2 differs in all that OSFT looks at: learned positions, layer norms and biases, weights stored ``[inputs,
outputs]``, queries, keys and values in one matrix, an MLP without a gate. It is trained here on the demo's stream of
conversations, with the demo's tokenizer, and kept in a folder for the next run. As in :mod:`demo.pretraining`, each
step takes its gradient at weights with noise added; a model this small forgets at the first touch otherwise.
"""

from enum import StrEnum
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from demo.pretraining import PretrainingConfig, teach
from demo.tokenizer import CONTEXT_TOKENS
from osft.subspace.targets import find_targets, target_parameter

DEMO_MODEL = Path(__file__).parents[2] / "demo" / "model"
PRETRAINING = PretrainingConfig(seed=20262, num_steps=4000, noise_ratio=0.8)


class Architecture(StrEnum):
    """The base models."""

    DEMO = "demo"
    GPT2 = "gpt2"


def base_model_folder(architecture: Architecture, cache: Path) -> Path:
    """Return the folder of a base model and its tokenizer; GPT-2 is trained first where ``cache`` has none."""
    if architecture is Architecture.DEMO:
        return DEMO_MODEL
    folder = cache / f"{architecture}-{PRETRAINING.num_steps}-{PRETRAINING.seed}"
    if not (folder / "config.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(DEMO_MODEL)
        model = pretrain_gpt2(tokenizer, PRETRAINING)
        tokenizer.save_pretrained(folder)
        # Its config.json is what says that the folder is whole.
        model.save_pretrained(folder)
    return folder


def load_base(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return a model in float32 and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def new_gpt2(tokenizer: PreTrainedTokenizerFast, seed: int) -> GPT2LMHeadModel:
    """Return an untrained GPT-2 of about as many parameters as the demo's model."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=CONTEXT_TOKENS,
            n_embd=128,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain_gpt2(tokenizer: PreTrainedTokenizerFast, config: PretrainingConfig) -> GPT2LMHeadModel:
    """Return a GPT-2 that knows the countries."""
    model = new_gpt2(tokenizer, config.seed)
    teach(model, [target_parameter(model, target).data for target in find_targets(model)], tokenizer, config)
    return model
