"""One process of several that train a model together, on tensors without values: its share, and what it gathers.

The model of :mod:`osft.planning.simulation` stands for the weights whole, which count while they are gathered; the
share of a process is tensors of its own. When FSDP gathers a block and lets go of it is told by hooks, since its own
code needs the other processes: the buffers and their lives are those of torch.distributed.fsdp 2.13, in its
_fsdp_param_group.py. Rows are counted as of the first process, which has the most.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from osft.config import TrainingConfig
from osft.planning.gathering import Gathering, Group
from osft.planning.simulation import (
    BASES,
    COVARIANCES,
    DECOMPOSITION,
    GATHERED,
    LOADING,
    MERGED,
    MOMENTS,
    OPTIMIZER,
    REMEMBERING,
    TEMPORARIES,
    TRAINED,
    WEIGHTS,
    Simulation,
    Traffic,
    fill_gradients,
    make_model,
    move_weights,
    plan_to_remember,
    run_micro_batch,
    state_tensors,
)
from osft.planning.tracking import AllocationTracker, AssumedValues
from osft.subspace.attach import attach_one
from osft.subspace.decomposition import ProtectedSubspace, frozen_rank, keeps_free_basis, protect_leading_directions
from osft.subspace.exchange import find_owners
from osft.subspace.parametrization import SubspaceWeight
from osft.subspace.targets import find_targets, target_parameter
from osft.training.optimizer import make_optimizer
from osft.training.sharding import repeated_blocks


def simulate_share(
    model_config: PretrainedConfig, config: TrainingConfig, world_size: int, *, on_gpu: bool
) -> Simulation:
    """Do in one of ``world_size`` processes what :func:`osft.planning.simulation.simulate` does in one alone."""
    with AssumedValues(), AllocationTracker() as tracker:
        with torch.device("meta"):
            model = make_model(model_config, on_gpu=on_gpu)
        return _SpreadRun(model, config, world_size, tracker, on_gpu=on_gpu).take()


@dataclass(frozen=True, slots=True)
class _OwnRows:
    """What a process keeps of one trained weight, as far as a step's end needs it."""

    weight: SubspaceWeight
    core: nn.Parameter


class _SpreadRun:
    """The first process of a run of several."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: TrainingConfig,
        world_size: int,
        tracker: AllocationTracker,
        *,
        on_gpu: bool,
    ) -> None:
        self.model = model
        self.config = config
        self.world_size = world_size
        self.tracker = tracker
        self.on_gpu = on_gpu
        self.low = model.dtype if model.dtype != torch.float32 else None
        self.targets = find_targets(model, config.target_patterns)
        self.remembering = plan_to_remember(model, config, world_size, on_gpu=on_gpu)
        self.own_decompositions: dict[str, ProtectedSubspace] = {}
        self.decomposed: list[tuple[int, int]] = []
        self.host_bytes = 0
        self.lasting: list[Tensor] = []
        self.trained: list[nn.Parameter] = []
        self.trained_values = 0
        self.rows: list[_OwnRows] = []
        self.grouped: set[nn.Parameter | nn.Module] = set()
        tracker.hide(model.parameters())

    def take(self) -> Simulation:
        """Load, decompose, spread and take a step."""
        tracker = self.tracker
        with tracker.phase(LOADING, WEIGHTS):
            loaded = [self._share(parameter) for parameter in self.model.parameters()]
        with tracker.phase(DECOMPOSITION, TEMPORARIES):
            self._decompose_share()
            groups = self._spread_weights()
        del loaded
        with tracker.phase(OPTIMIZER, TEMPORARIES):
            optimizer = make_optimizer(self.trained, self.config)
            fill_gradients(self.trained, tracker)
            optimizer.step()
            tracker.assign(MOMENTS, state_tensors(optimizer))
        gathering = Gathering(groups, self.world_size, tracker, GATHERED)
        run_micro_batch(self.model, self.config, tracker, gathering.step(), on_gpu=self.on_gpu)
        with tracker.phase(OPTIMIZER, TEMPORARIES):
            for rows in self.rows:
                # A copy of the gradient's rows, which replaces them.
                self._remove_protected_part(rows.weight, rows.core.detach())
            move_weights(self.trained, optimizer)
            for rows in self.rows:
                self._merge(rows)
        if self.remembering:
            optimizer.state.clear()
            with tracker.phase(REMEMBERING, TEMPORARIES):
                self.remembering.measure(self.model, tracker, COVARIANCES, gathering.step())
            # The memory so far lies beside the decompositions; when the next is measured, they are handed out.
            self.host_bytes = max(self.host_bytes + self.remembering.memory_bytes, self.remembering.host_bytes)
        return Simulation(
            peaks=tracker.peaks,
            host_bytes=self.host_bytes,
            remembering=self.remembering,
            trained_values=self.trained_values,
            decomposed=tuple(self.decomposed),
            traffic=self._count_traffic(groups),
        )

    def _share(self, tensor: Tensor) -> Tensor:
        """Return an empty tensor of this process's rows of ``tensor``."""
        return tensor.new_empty(self._count_rows(tensor), *tensor.shape[1:])

    def _count_rows(self, tensor: Tensor) -> int:
        return math.ceil(len(tensor) / self.world_size)

    def _decompose_share(self) -> None:
        """As :func:`osft.subspace.exchange.spread`."""
        owners = find_owners(self.model, self.targets, self.world_size)
        for target in self.targets:
            weight = target_parameter(self.model, target)
            matrices: dict[str, Tensor] = {target.name: weight}
            if weight.ndim == 3:
                matrices = {f"{target.name}[{expert}]": matrix for expert, matrix in enumerate(weight)}
            own = {name: matrix for name, matrix in matrices.items() if owners[name] == 0}
            if own:
                self._decompose(own, weight)

    def _decompose(self, matrices: dict[str, Tensor], whole: Tensor) -> None:
        self.tracker.show(GATHERED, [whole])
        for name, matrix in matrices.items():
            rows, columns = matrix.shape
            self.decomposed.append((rows, columns))
            kept = _as_kept(protect_leading_directions(matrix, self.config.unfreeze_rank_ratio), matrix.dtype)
            if self.on_gpu:
                # Off to the host.
                self.host_bytes += sum(tensor.untyped_storage().nbytes() for tensor in _tensors(kept))
                self.tracker.hide(_tensors(kept))
            self.own_decompositions[name] = kept
        self.tracker.hide([whole])

    def _receive(self, name: str, weight: Tensor) -> ProtectedSubspace:
        """Return what the owner of a matrix hands to all; the own one leaves what waits."""
        if (own := self.own_decompositions.pop(name, None)) is not None:
            self.tracker.show(TEMPORARIES, _tensors(own))
            return own
        rows, columns = weight.shape
        rank = frozen_rank(rows, columns, self.config.unfreeze_rank_ratio)
        (left, free_left), (right, free_right) = (_received_side(size, rank, weight) for size in (rows, columns))
        return ProtectedSubspace(left=left, right=right, free_left=free_left, free_right=free_right)

    def _spread_weights(self) -> list[Group]:
        """As :func:`osft.training.sharding.shard`; return what FSDP gathers together, in the order of the model."""
        self.model.requires_grad_(self.config.train_other_parameters)
        waiting, groups = list(self.targets), []
        for path, module in (*repeated_blocks(self.model), ("", self.model)):
            self.tracker.show(WEIGHTS, self._new_parameters(module))
            for target in [target for target in waiting if target.module_name.startswith(path)]:
                waiting.remove(target)
                attach_one(self.model, target, self._receive)
            groups.append(self._keep_share(module))
        return groups

    def _new_parameters(self, module: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of ``module`` that are in no group yet and have values."""
        return [p for p in module.parameters() if p not in self.grouped and p.numel()]

    def _keep_share(self, module: nn.Module) -> Group:
        """Keep this process's rows of what is new in ``module``, and hide the whole."""
        subspaces = [s for s in module.modules() if isinstance(s, SubspaceWeight) and s not in self.grouped]
        sides = [side for subspace in subspaces for side in (subspace.left, subspace.right)]
        parameters = self._new_parameters(module)
        self.grouped.update(parameters, subspaces)
        cores = {id(subspace.core): subspace for subspace in subspaces}
        for parameter in parameters:
            if parameter.requires_grad:
                # Small steps would be lost in less.
                parameter.data = parameter.data.float()
            own = self._keep(TRAINED if parameter.requires_grad else WEIGHTS, parameter)
            if parameter.requires_grad:
                self.trained.append(nn.Parameter(own))
                self.trained_values += parameter.numel()
                if id(parameter) in cores:
                    self.rows.append(_OwnRows(cores[id(parameter)], self.trained[-1]))
                # In what FSDP gathers it.
                parameter.data = parameter.data.to(self.low or parameter.dtype)
        for subspace in subspaces:
            self._keep(MERGED, subspace.merged)
            self._keep(WEIGHTS, subspace.base)
        for side in sides:
            self._keep(BASES, side.basis)
        free_bases = [side.basis for side in sides if side.is_free_basis and side.basis.numel()]
        gathered = [*parameters, *(subspace.merged for subspace in subspaces), *free_bases]
        self.tracker.hide([*gathered, *(s.base for s in subspaces), *(side.basis for side in sides)])
        return Group(module=module, tensors=gathered, trained=[p for p in parameters if p.requires_grad])

    def _keep(self, part: str, whole: Tensor) -> Tensor:
        own = self._share(whole)
        self.tracker.assign(part, [own])
        self.lasting.append(own)
        return own

    @torch.no_grad()
    def _merge(self, rows: _OwnRows) -> None:
        """As :class:`osft.subspace.rows.RowShardedWeight`."""
        weight = rows.weight
        update = own_core = self._remove_protected_part(weight, rows.core.detach())
        if weight.left.is_free_basis:
            left = self._own(weight.left.basis)
            update = left @ self._needed(weight.core)
        if weight.right.is_free_basis:
            right = self._needed(weight.right.basis)
            update = update.to(right.dtype) @ right.mT
        base = self._own(weight.base).to(own_core.dtype)
        torch.addcmul(base, update.to(own_core.dtype), weight.scale)

    def _remove_protected_part(self, weight: SubspaceWeight, own: Tensor) -> Tensor:
        if not weight.right.is_free_basis and weight.right.basis.shape[-1]:
            right = self._needed(weight.right.basis)
            own = own - ((own.to(right.dtype) @ right) @ right.mT).to(own.dtype)
        if not weight.left.is_free_basis and weight.left.basis.shape[-1]:
            left = self._own(weight.left.basis)
            overlap = (left.mT @ own.to(left.dtype)).to(own.dtype)
            own = own - (left @ overlap.to(left.dtype)).to(own.dtype)
        return own

    def _own(self, whole: Tensor) -> Tensor:
        return whole[: self._count_rows(whole)]

    def _needed(self, whole: Tensor) -> Tensor:
        return self._own(whole) if whole.ndim == 3 else torch.empty_like(whole)

    def _count_traffic(self, groups: Sequence[Group]) -> Traffic:
        """Count what a process receives, and for gradients sends: all parts but its own."""
        *of_blocks, root = (group.num_bytes for group in groups)
        others = (self.world_size - 1) / self.world_size
        trained = sum(parameter.numel() for group in groups for parameter in group.trained)
        return Traffic(
            gathered_bytes=round(others * (2 * sum(of_blocks) + root)),
            reduced_bytes=round(others * 4 * trained),
            bytes_per_step=round(others * sum(map(sum, map(_once_a_step, (rows.weight for rows in self.rows))))),
        )


def _as_kept(protected: ProtectedSubspace, dtype: torch.dtype) -> ProtectedSubspace:
    """Return ``protected`` as it waits and travels: of each side the smaller form; the other has one value."""
    left, free_left = _side_as_kept(protected.left, protected.free_left, dtype)
    right, free_right = _side_as_kept(protected.right, protected.free_right, dtype)
    return ProtectedSubspace(left=left, right=right, free_left=free_left, free_right=free_right)


def _side_as_kept(protected: Tensor, free: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    size, rank = protected.shape
    if not keeps_free_basis(size, rank):
        return protected.to(dtype), None
    basis = protected.new_empty(size, size - rank) if free is None else free
    return protected.new_zeros((), dtype=dtype).expand(size, rank), basis.to(dtype)


def _received_side(size: int, rank: int, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    if not keeps_free_basis(size, rank):
        return weight.new_empty(size, rank), None
    return weight.new_zeros(()).expand(size, rank), weight.new_empty(size, size - rank)


def _tensors(protected: ProtectedSubspace) -> list[Tensor]:
    values = (protected.left, protected.right, protected.free_left, protected.free_right)
    return [tensor for tensor in values if tensor is not None]


def _once_a_step(weight: SubspaceWeight) -> Iterator[int]:
    """Yield the bytes of what travels at the end of a step: core and bases of the columns' side, and an overlap."""
    if weight.core.ndim == 3:
        return
    if weight.left.is_free_basis:
        yield weight.core.nbytes
    elif weight.left.basis.shape[-1]:
        # A sum to all goes there and back; of the gradient and of the core.
        yield 2 * 2 * 4 * weight.left.basis.shape[-1] * weight.right.coordinates
    if weight.right.is_free_basis:
        yield weight.right.basis.nbytes
    elif weight.right.basis.shape[-1]:
        yield 2 * weight.right.basis.nbytes
