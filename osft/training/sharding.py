"""A model spread over the processes of a run by FSDP2: each keeps its rows of every weight.

What a step needs whole is a parameter of FSDP's, which gathers it block by block: the merged weights, the bases of
free directions, and the cores, whose gradients it sums over the processes. What is needed once a step, to bring the
merged weights up to date, stays spread: base weights and protected directions are distributed tensors of the same
rows, which :mod:`osft.subspace.rows` works on.

Source: fully_shard, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from osft.errors import ConfigError
from osft.subspace.attach import Source, attach_one
from osft.subspace.exchange import gather
from osft.subspace.parametrization import FreeSide, SubspaceWeight
from osft.subspace.rows import RowShardedWeight
from osft.subspace.targets import Target, target_parameter

Result = TypeVar("Result")
ROWS = (Shard(0),)


class Root(nn.Module):
    """What FSDP takes for the model: what runs inside its forward finds the weights outside the blocks whole."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take ``model``, whose blocks are sharded, as it is."""
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return ``function(*arguments)``."""
        return function(*arguments)


def empty_copy(loaded: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the same configuration without values, on the meta device, and without FSDP's hooks."""
    config = copy.deepcopy(loaded.config)
    config.distributed_config = None
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=loaded.dtype, attn_implementation=config.get_text_config()._attn_implementation
        )
    model.generation_config = loaded.generation_config
    # What saving reverses.
    model._weight_conversions = loaded._weight_conversions
    return model


def shard(
    model: PreTrainedModel,
    loaded: PreTrainedModel,
    targets: Sequence[Target],
    protect: Source,
    *,
    train_other_parameters: bool,
    entered: Callable[[str], None] = lambda _: None,
) -> Root:
    """Fill ``model`` block by block, let its targets train in their free subspaces, and spread it over the processes.

    Every process must call this. A block is whole in every process until it is ready; then each keeps its rows.

    Args:
        model: what :func:`empty_copy` returned, as its modules are to be.
        loaded: the same model with its weights, as transformers spreads it over the processes while it loads it.
        targets: what is trained.
        protect: gives every process the same for each matrix.
        train_other_parameters: train embeddings, norms, biases and head as well, unprotected; in float32.
        entered: is told of each block when it begins.
    """
    mesh = init_device_mesh(loaded.device.type, (dist.get_world_size(),))
    weights = dict(loaded.named_parameters(remove_duplicate=False))
    model.requires_grad_(train_other_parameters)
    for target in targets:
        target_parameter(model, target).requires_grad_(False)
    _take_buffers(model, loaded)
    root, waiting = Root(model), list(targets)
    for path, module in (*repeated_blocks(model), ("", root)):
        entered(f"preparing {path.rstrip('.') or 'what is outside the blocks'}")
        dtypes = _fill(model, path, weights)
        if train_other_parameters and len(dtypes) > 1:
            raise ConfigError(
                f"train_other_parameters=True in several processes takes a model of one precision, but "
                f"{path or 'the model'} has {', '.join(sorted(map(str, dtypes)))}. Leave it out, or train in one "
                "process."
            )
        for target in [target for target in waiting if target.module_name.startswith(path)]:
            waiting.remove(target)
            attach_one(model, target, protect)
        _shard_module(module, mesh, dtypes)
    return root


def repeated_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path, with a dot behind it, and module of each repeated block; none where blocks share weights."""
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    outermost = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    blocks = {
        f"{path}.{name}.": block for path in outermost for name, block in model.get_submodule(path).named_children()
    }
    if all(count == 1 for count in Counter(p for block in blocks.values() for p in block.parameters()).values()):
        yield from blocks.items()


def _take_buffers(model: nn.Module, loaded: nn.Module) -> None:
    """Give ``model`` the buffers of ``loaded``, which hold what no file does, such as rotary frequencies."""
    for name, buffer in loaded.named_buffers():
        path, _, buffer_name = name.rpartition(".")
        model.get_submodule(path)._buffers[buffer_name] = buffer


def _fill(model: nn.Module, path: str, weights: Mapping[str, Tensor]) -> set[torch.dtype]:
    """Give every empty parameter below ``path`` its whole value; return the dtypes of the floating ones.

    What is trained becomes float32: small steps would be lost in less.
    """
    dtypes = set()
    empty = {
        name: p for name, p in model.named_parameters(remove_duplicate=False) if p.is_meta and name.startswith(path)
    }
    for parameter in dict.fromkeys(empty.values()):
        names = [name for name, other in empty.items() if other is parameter]
        value = gather(weights[names[0]].detach())
        dtypes.add(value.dtype)
        if parameter.requires_grad:
            value = value.to(torch.promote_types(value.dtype, torch.float32))
        filled = nn.Parameter(value, requires_grad=parameter.requires_grad)
        for name in names:
            holder, _, parameter_name = name.rpartition(".")
            model.get_submodule(holder)._parameters[parameter_name] = filled
    return dtypes


def _shard_module(module: nn.Module, mesh: DeviceMesh, dtypes: set[torch.dtype]) -> None:
    """Let FSDP spread what of ``module`` is needed whole, and spread the rest without it.

    Args:
        module: whole, in every process the same.
        mesh: all processes in one row.
        dtypes: of the weights as they were loaded. Where all are of one, it is what the trained ones are gathered in.
    """
    # Those of the blocks inside are spread already.
    subspaces = [each for each in module.modules() if type(each) is SubspaceWeight]
    spread_bases: dict[FreeSide, Tensor] = {}
    for subspace in subspaces:
        _to_frozen_parameter(subspace, "merged")
        del subspace.base
        for side in (subspace.left, subspace.right):
            if side.is_free_basis:
                _to_frozen_parameter(side, "basis")
            else:
                # A copy: rows cut from the whole would keep all of it alive.
                spread_bases[side] = distribute_tensor(side.basis, mesh, ROWS, src_data_rank=None).clone()
                del side.basis
    low = next(iter(dtypes)) if len(dtypes) == 1 and torch.float32 not in dtypes else None
    policy = MixedPrecisionPolicy(
        param_dtype=low, reduce_dtype=torch.float32 if low else None, cast_forward_inputs=False
    )
    # FSDP takes no parameter without values: the emptied ones behind a parametrization.
    without_values = {parameter for parameter in module.parameters() if parameter.numel() == 0}
    sharded = fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=without_values)
    # The loss is divided by the tokens of the whole batch already: gradients are summed, not averaged.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
    for side, basis in spread_bases.items():
        side.register_buffer("basis", basis, persistent=False)
    for subspace in subspaces:
        subspace.register_buffer("base", subspace.merged.detach().clone(), persistent=False)
        # As FSDP does it to the modules themselves.
        subspace.__class__ = RowShardedWeight


def _to_frozen_parameter(module: nn.Module, name: str) -> None:
    value = getattr(module, name)
    delattr(module, name)
    module.register_parameter(name, nn.Parameter(value, requires_grad=False))
