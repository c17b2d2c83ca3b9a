"""The ways to train that are compared: what each makes of a model, and what it does around the optimizer's step.

On a CPU the peers are used as they are shipped: their classes, their hooks, their wrapper of the optimizer. Their
packages are imported where they are needed, so that the other variants run without them.

On a GPU a variant that trains the model's own weights keeps them in float32 and computes in bfloat16 by autocast, as
mixed precision does; a variant that adds weights keeps the model in bfloat16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from osft.errors import ConfigError
from osft.subspace.attach import attach, merge, project_gradients
from osft.subspace.decomposition import protect_leading_directions
from osft.subspace.targets import find_targets
from osft.training.optimizer import AdamWithBfloat16Moments

LEARNING_RATE = 1e-5
BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.0
LORA_RANK = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A model that is ready to train, and what belongs to a step of it."""

    model: PreTrainedModel
    optimizer: Optimizer | None
    """``None`` where nothing is trained."""

    before_clipping: Callable[[], None]
    """Follows the last backward pass of a step."""

    after_step: Callable[[], None]
    """Follows the optimizer."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer moves."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to train."""

    name: str
    prepare: Callable[[PreTrainedModel, float], Prepared]
    """Takes a model and the ``unfreeze_rank_ratio``; may change the model in place."""

    gpu_dtype: torch.dtype = torch.bfloat16
    """What the model is loaded in on a GPU; on a CPU it is float32."""

    gpu_autocast: bool = False
    """Whether it computes in bfloat16 by autocast on a GPU."""


def choose_variants(names: list[str]) -> list[Variant]:
    """Return the variants called ``names``; all of :data:`DEFAULT_VARIANTS` without names.

    Raises:
        ConfigError: if there is no such variant.
    """
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ConfigError(f"--variant '{unknown[0]}' is not one of: {', '.join(VARIANTS)}.")
    return [VARIANTS[name] for name in names or DEFAULT_VARIANTS]


def _freeze(model: PreTrainedModel, unfreeze_rank_ratio: float) -> Prepared:
    """Train nothing: the floor of what any method can cost that computes with the model's linears.

    The embeddings' output requires a gradient, so the backward pass runs through every layer down to its input, but
    no weight has one and there is nothing to step.
    """
    del unfreeze_rank_ratio
    model.requires_grad_(False)
    model.enable_input_require_grads()
    return Prepared(model=model, optimizer=None, before_clipping=_do_nothing, after_step=_do_nothing)


def _train_all(model: PreTrainedModel, unfreeze_rank_ratio: float) -> Prepared:
    del unfreeze_rank_ratio
    return _with_adamw(model)


def _attach_osft(model: PreTrainedModel, unfreeze_rank_ratio: float, *, save_memory: bool) -> Prepared:
    attach(
        model,
        find_targets(model),
        lambda _, weight: protect_leading_directions(weight, unfreeze_rank_ratio),
        offload=save_memory and model.device.type == "cuda",
    )
    plain = _with_adamw(model)
    optimizer: Optimizer | None = plain.optimizer
    if save_memory:
        optimizer = AdamWithBfloat16Moments(plain.parameters, LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY)
    return Prepared(
        model=model,
        optimizer=optimizer,
        before_clipping=partial(project_gradients, model),
        after_step=partial(merge, model),
    )


def _attach_mini_trainer(model: PreTrainedModel, unfreeze_rank_ratio: float) -> Prepared:
    """Build the peer's model class; its wrapper of the optimizer projects gradients and parameters in ``step``."""
    from mini_trainer.osft_utils import auto_generate_target_osft_config, create_osft_model_class, optim_wrapper

    ranks = auto_generate_target_osft_config(model, "llama", rank_ratio=1 - unfreeze_rank_ratio)
    with torch.device(model.device):
        peer = create_osft_model_class(type(model))(model.config, osft_config=ranks, initialize_osft=False)
    peer.load_state_dict(model.state_dict())
    peer.reinitialize_osft(decompose_existing_weights=True)
    plain = _with_adamw(peer.train())
    return Prepared(
        model=peer,
        optimizer=optim_wrapper(plain.optimizer, peer),
        before_clipping=_do_nothing,
        after_step=_do_nothing,
    )


def _attach_peft_osf(model: PreTrainedModel, unfreeze_rank_ratio: float) -> Prepared:
    from peft import OSFConfig, get_peft_model

    config = OSFConfig(effective_rank=1 - unfreeze_rank_ratio, target_modules="all-linear")
    return _with_adamw(get_peft_model(model, config).get_base_model())


def _attach_lora(model: PreTrainedModel, unfreeze_rank_ratio: float) -> Prepared:
    from peft import LoraConfig, get_peft_model

    del unfreeze_rank_ratio
    config = LoraConfig(r=LORA_RANK, target_modules="all-linear")
    return _with_adamw(get_peft_model(model, config).get_base_model())


def _with_adamw(model: PreTrainedModel) -> Prepared:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    return Prepared(model=model, optimizer=optimizer, before_clipping=_do_nothing, after_step=_do_nothing)


def _do_nothing() -> None:
    """Stand where other variants have work."""


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(name="frozen", prepare=_freeze),
        Variant(name="sft", prepare=_train_all, gpu_dtype=torch.float32, gpu_autocast=True),
        Variant(name="osft", prepare=partial(_attach_osft, save_memory=False)),
        Variant(name="osft-save-memory", prepare=partial(_attach_osft, save_memory=True)),
        Variant(name="mini-trainer", prepare=_attach_mini_trainer, gpu_dtype=torch.float32, gpu_autocast=True),
        Variant(name="peft-osf", prepare=_attach_peft_osf, gpu_autocast=True),
        Variant(name="lora", prepare=_attach_lora, gpu_autocast=True),
    )
}
# Options of ours are measured when they are asked for.
DEFAULT_VARIANTS = tuple(name for name in VARIANTS if name != "osft-save-memory")
