"""A model in, a model out: its targets train in their free subspaces, everything else is frozen, in place.

What is left unprotected (embeddings, head, norms) is where most of the forgetting happens, so by default it does not
move.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from osft.subspace.decomposition import ProtectedSubspace
from osft.subspace.factored import FactoredWeight
from osft.subspace.parametrization import SubspaceLinear, SubspaceWeight, TrainedWeight
from osft.subspace.targets import Target, holders, target_parameter

Source = Callable[[str, Tensor], ProtectedSubspace]
"""Says what is protected of a weight ``[rows, columns]`` with a name."""


def attach(
    model: PreTrainedModel,
    targets: Sequence[Target],
    protect: Source,
    *,
    factored: bool = False,
    train_other_parameters: bool = False,
    offload: bool = False,
) -> None:
    """Let ``targets`` move outside what ``protect`` says, in place; the outputs stay as they are, bit for bit.

    Args:
        model: a causal language model with its weights loaded.
        targets: what :func:`osft.subspace.targets.find_targets` found in it.
        protect: called once for every matrix; for an expert of a stack under the name ``<target>[<expert>]``.
        factored: train the paper's three factors in place of coordinates of the free subspace: the slow reference,
            whose outputs differ from the model's by rounding.
        train_other_parameters: train embeddings, norms, biases and head as well, unprotected.
        offload: keep what is needed once a step alone in the host's memory.
    """
    model.requires_grad_(train_other_parameters)
    for target in targets:
        attach_one(model, target, protect, factored=factored, offload=offload)


def attach_one(
    model: PreTrainedModel, target: Target, protect: Source, *, factored: bool = False, offload: bool = False
) -> None:
    """Do for one target what :func:`attach` does for all; the other parameters stay as they are."""
    # Looked for before anything is replaced: blocks may share a weight.
    places = holders(model, target)
    weight = target_parameter(model, target).detach()
    protected = _protect_all(target.name, weight, protect)
    trained = FactoredWeight(weight, protected) if factored else SubspaceWeight(weight, protected, offload=offload)
    for module, parameter_name in places:
        if isinstance(trained, SubspaceWeight) and _is_plain_linear(module):
            _replace_module(model, module, SubspaceLinear(trained, module.bias))
        else:
            _replace_weight(module, parameter_name, trained)


def _protect_all(name: str, weight: Tensor, protect: Source) -> ProtectedSubspace:
    """Return what is protected of ``weight``, stacked for a stack of experts."""
    if weight.ndim == 2:
        return protect(name, weight)
    each = [protect(f"{name}[{expert}]", matrix) for expert, matrix in enumerate(weight)]
    return ProtectedSubspace(
        left=torch.stack([protected.left for protected in each]),
        right=torch.stack([protected.right for protected in each]),
        free_left=_stack_if_any([protected.free_left for protected in each]),
        free_right=_stack_if_any([protected.free_right for protected in each]),
    )


def _stack_if_any(matrices: Sequence[Tensor | None]) -> Tensor | None:
    present = [matrix for matrix in matrices if matrix is not None]
    return torch.stack(present) if len(present) == len(matrices) else None


def _is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    # Not by type alone: some families compute otherwise in a class that derives from nn.Linear.
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _replace_module(model: nn.Module, module: nn.Module, replacement: nn.Module) -> None:
    paths = [path for path, found in model.named_modules(remove_duplicate=False) if found is module]
    for path in paths:
        model.set_submodule(path, replacement)


def _replace_weight(module: nn.Module, parameter_name: str, trained: TrainedWeight) -> None:
    """Let a module with a computation of its own read the trained weight in place of its parameter."""
    parametrize.register_parametrization(module, parameter_name, trained, unsafe=True)
    # The trained weight keeps the values; the module needs none of its own.
    original = module.parametrizations[parameter_name].original  # type: ignore[index, union-attr]
    original.requires_grad_(False)
    original.data = original.data.new_empty(0)


def trained_weights(model: nn.Module) -> Iterator[tuple[str, TrainedWeight]]:
    """Yield name and weight of every target, by the names of :class:`osft.subspace.targets.Target`."""
    for path, module in model.named_modules():
        if isinstance(module, TrainedWeight):
            yield _plain_name(path).removesuffix(".weight"), module


def project_gradients(model: nn.Module) -> None:
    """Take the protected part out of every gradient; once a step, after the last backward pass."""
    for _, weight in trained_weights(model):
        weight.project_gradient()


def merge(model: nn.Module) -> None:
    """Bring every merged weight up to date with its core; once a step, after the optimizer."""
    for _, weight in trained_weights(model):
        weight.merge()


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of ``model`` as it was without our layers: the same names, merged weights, no copies."""
    modules = list(model.named_modules(remove_duplicate=False))
    ours = [path for path, module in modules if isinstance(module, TrainedWeight)]
    renamed = {f"{path}.merged": _plain_name(path) for path in ours}
    # Where a trained weight is a parametrization, it stands behind the list's own, emptied one.
    emptied = [path.removesuffix("0") + "original" for path in ours if ".parametrizations." in path]
    left_out = (*(f"{path}." for path in ours), *emptied)
    return {
        renamed.get(name, name): tensor
        for name, tensor in model.state_dict().items()
        if name in renamed or not name.startswith(left_out)
    }


def _plain_name(name: str) -> str:
    """Return the name that the weight of the subspace module ``name`` has without our layers.

    ``a.q_proj.subspace`` is ``a.q_proj.weight``; ``a.experts.parametrizations.down_proj.0`` is ``a.experts.down_proj``.
    """
    parent, found, parameter = name.rpartition(".parametrizations.")
    if found:
        return f"{parent}.{parameter.partition('.')[0]}"
    return f"{name.removesuffix('.subspace')}.weight"
