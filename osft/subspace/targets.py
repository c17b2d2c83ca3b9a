"""What is trained: the weight matrices of a model's attention and MLP, found from how the model is built.

No table of names: a family that transformers adds tomorrow is found as well. What is known of a model is its modules,
the shapes of their weights and what transformers itself says of them: which embeddings and head it has, and which of
its parts take in something other than text. Three facts carry the search:

- The repeated blocks are the members of an ``nn.ModuleList`` that hold more than one weight each.
- Experts are a stack ``[experts, rows, columns]`` beside a router. The router is what stands in the same module and
  ends in one value an expert, not in a hidden state (:func:`_is_router`).
- Within one mixture of experts the first stack takes in the hidden state and the last one gives it back, which tells
  ``[experts, out, in]`` from ``[experts, in, out]``.

Not found: matrices that a module keeps in another form. They stay as they are: the attention of XLNet (a dimension for
the heads), state-space mixers' own parameters (Zamba's ``x_proj_weight``), and the experts of DBRX (all in one matrix)
and Doge (embeddings), whose routers then look like any other linear.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from osft.errors import ConfigError

MAX_CANDIDATES_SHOWN = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One weight to train: a matrix, or a stack of them with a matrix an expert."""

    module_name: str
    """The module that holds the weight, as in ``model.named_modules()``."""

    parameter_name: str
    """The weight's name in that module."""

    inputs_are_columns: bool
    """Whether the (last two) dimensions are ``[out, in]``, as in ``nn.Linear``, or ``[in, out]``, as in GPT-2."""

    @property
    def name(self) -> str:
        """What the weight is called in patterns and reports: its module, and its parameter if that is no "weight"."""
        return self.module_name if self.parameter_name == "weight" else f"{self.module_name}.{self.parameter_name}"


def find_targets(model: PreTrainedModel, target_patterns: Sequence[str] | None = None) -> list[Target]:
    """Return the weights to train, in the order of the model.

    A weight that several modules share counts once, under its first name; :func:`holders` returns them all.

    Args:
        model: a causal language model; its weights may be on the meta device.
        target_patterns: regular expressions; a weight is a target when :attr:`Target.name` contains a match of one,
            wherever in the model it is: also in an image encoder or a projection before the blocks. The head, what
            shares its weight with the embeddings, and routers are out of their reach. Without patterns, every linear
            layer (``nn.Linear``, ``Conv1D``) and every stack of experts inside the repeated blocks of the language
            model is a target.

    Raises:
        ConfigError: if nothing matches; the message lists candidates.
    """
    candidates = _list_candidates(model)
    if target_patterns is None:
        blocks = _list_block_prefixes(model)
        targets = [target for target in candidates if target.module_name.startswith(blocks)]
    else:
        patterns = [re.compile(pattern) for pattern in target_patterns]
        targets = [target for target in candidates if any(pattern.search(target.name) for pattern in patterns)]
    if not targets:
        asked = "the default" if target_patterns is None else f"target_patterns={list(target_patterns)}"
        names = [target.name for target in _keep_first_names(model, candidates)][:MAX_CANDIDATES_SHOWN]
        raise ConfigError(
            f"{asked} matches no linear layer of {type(model).__name__}. "
            f"Choose from: {', '.join(names) or 'it has none'}."
        )
    return _keep_first_names(model, targets)


def target_parameter(model: nn.Module, target: Target) -> nn.Parameter:
    """Return the weight of ``target``, ``[rows, columns]`` or ``[experts, rows, columns]``."""
    return model.get_submodule(target.module_name).get_parameter(target.parameter_name)


def holders(model: nn.Module, target: Target) -> list[tuple[nn.Module, str]]:
    """Return each module that holds the weight of ``target``, with the weight's name there.

    More than one where blocks share weights (Zamba): whoever puts another tensor in place has to put it in all.
    """
    weight = target_parameter(model, target)
    return [
        (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if parameter is weight
    ]


def _list_candidates(model: PreTrainedModel) -> list[Target]:
    """Return all that may be trained, under every name that it has, in the order of the model."""
    routers: set[nn.Module] = set()
    layouts: dict[nn.Parameter, bool] = {}
    # The embeddings' width: what the first block takes in.
    hidden_size = next(model.get_input_embeddings().parameters()).shape[-1]
    for module in model.modules():
        more_routers, more_layouts = _find_mixture(module, hidden_size)
        routers |= more_routers
        layouts |= more_layouts
    ends = _list_end_weights(model)
    return [
        Target(module_name=module_name, parameter_name=parameter_name, inputs_are_columns=inputs_are_columns)
        for module_name, module in model.named_modules(remove_duplicate=False)
        if module not in routers
        for parameter_name, weight, inputs_are_columns in _list_matrices(module, layouts)
        if weight not in ends
    ]


def _list_matrices(module: nn.Module, layouts: Mapping[nn.Parameter, bool]) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Yield name, weight and whether inputs are columns of each matrix and stack of experts that ``module`` holds."""
    for name, weight in _list_weights(module):
        if weight in layouts:
            yield name, weight, layouts[weight]
        elif name == "weight" and isinstance(module, nn.Linear | Conv1D):
            yield name, weight, isinstance(module, nn.Linear)


def _list_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what ``module`` itself holds of weights that multiply a hidden state: no embedding, no convolution."""
    if isinstance(module, nn.Embedding | _ConvNd):
        return
    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        if parameter.ndim in (2, 3):
            yield name, parameter


def _list_end_weights(model: PreTrainedModel) -> set[nn.Parameter]:
    """Return the weights of the head and of all embeddings; in many models the two are one."""
    head = model.get_output_embeddings()
    ends = [model.get_input_embeddings(), *(module for module in model.modules() if isinstance(module, nn.Embedding))]
    return {weight for end in (ends if head is None else [*ends, head]) for weight in end.parameters()}


def _keep_first_names(model: PreTrainedModel, targets: Sequence[Target]) -> list[Target]:
    """Return ``targets`` with each weight once, under the first of its names."""
    firsts: dict[nn.Parameter, Target] = {}
    for target in targets:
        firsts.setdefault(target_parameter(model, target), target)
    return list(firsts.values())


def _list_block_prefixes(model: PreTrainedModel) -> tuple[str, ...]:
    """Return what the names of all modules inside the language model's repeated blocks begin with."""
    blocks: list[str] = []
    towers: list[str] = []
    embeddings = model.get_input_embeddings()
    for name, module in model.named_modules(remove_duplicate=False):
        if name.startswith(tuple(towers)):
            continue
        # Whisper's decoder names the encoder's input as its own: what holds the embeddings takes text whatever it says.
        is_part = isinstance(module, PreTrainedModel) and embeddings not in module.modules()
        if is_part and not _takes_text(module):
            towers.append(f"{name}.")
        elif isinstance(module, nn.ModuleList) and any(_is_block(member) for member in module):
            blocks.append(f"{name}.")
    return tuple(blocks)


def _takes_text(part: PreTrainedModel) -> bool:
    """Return whether a part of a model works on text; an encoder of images or sound does not."""
    return "text" in part.input_modalities and part.main_input_name == "input_ids"


def _is_block(member: nn.Module) -> bool:
    """Return whether a member of a list is a block; several heads or projections in a list are bare layers."""
    return not isinstance(member, nn.Linear | Conv1D | nn.Embedding) and any(
        next(_list_weights(module), None) is not None for module in member.modules()
    )


def _find_mixture(module: nn.Module, hidden_size: int) -> tuple[set[nn.Module], dict[nn.Parameter, bool]]:
    """Return routers and stacks of experts among the children of ``module``; both are empty for most modules.

    Returns:
        The modules that choose or weigh experts, with all that is in them, and for each stack of experts whether its
        inputs are columns.
    """
    children = list(module.children())
    holders_of_stacks = [child for child in children if _list_stacks(child)]
    # Before version 5 of transformers each expert was a module of its own, in a list.
    lists = [child for child in children if isinstance(child, nn.ModuleList)]
    if not holders_of_stacks and not lists:
        return set(), {}
    stacks = [stack for child in holders_of_stacks for stack in _list_stacks(child)]
    counts = {stack.shape[0] for stack in stacks} | {len(experts) for experts in lists}
    # Experts that always run can have their rows in the router too (Inkling).
    counts.add(sum(_list_stacks(child)[0].shape[0] for child in holders_of_stacks))
    widths = {hidden_size}.union(set.intersection(*(set(stack.shape[1:]) for stack in stacks)) if stacks else ())
    others = [child for child in children if child not in holders_of_stacks and child not in lists]
    chosen = [child for child in others if _is_router(child, counts, widths, has_stacks=bool(stacks))]
    if not chosen:
        return set(), {}
    # One output weighs an expert that all tokens share (Qwen2-MoE).
    chosen += [child for child in others if isinstance(child, nn.Linear) and child.out_features == 1]
    routers = {part for child in chosen for part in child.modules()}
    return routers, dict.fromkeys(stacks, _take_columns(stacks, hidden_size)) if stacks else {}


def _list_stacks(module: nn.Module) -> list[nn.Parameter]:
    """Return what ``module`` itself holds in the shape of a stack of matrices."""
    return [weight for _, weight in _list_weights(module) if weight.ndim == 3 and min(weight.shape) > 1]


def _is_router(module: nn.Module, counts: set[int], widths: set[int], *, has_stacks: bool) -> bool:
    """Return whether ``module``, which stands beside experts, is what chooses among them.

    A router of one matrix has a row an expert. One of several (ZAYA) never comes back to a width that experts take
    in or give back, as shared experts, attention and latent projections do.

    Args:
        module: a sibling of the experts.
        counts: how many experts there are; more than one number if there are several kinds.
        widths: sizes of the hidden states that go into and come out of the experts.
        has_stacks: whether the experts are stacks. Lists are of many kinds, so only the first rule goes for them.
    """
    rows = [weight.shape[0] for part in module.modules() for _, weight in _list_weights(part) if weight.ndim == 2]
    if len(rows) == 1:
        return rows[0] in counts
    return has_stacks and bool(rows) and widths.isdisjoint(rows)


def _take_columns(stacks: Sequence[nn.Parameter], hidden_size: int) -> bool:
    """Return whether the stacks of one mixture are ``[experts, out, in]``, not ``[experts, in, out]``.

    What the first stack takes in is as wide as what the last one gives back. Gated experts fit that in one layout
    only, since the first has twice the inner width. Where both fit, the model's hidden size is what the first takes in;
    where both sides have that size, the layout is that of ``nn.Linear``.
    """
    first, last = stacks[0].shape, stacks[-1].shape
    columns_fit, rows_fit = first[2] == last[1], first[1] == last[2]
    if columns_fit != rows_fit:
        return columns_fit
    return first[2] == hidden_size or first[1] != hidden_size
