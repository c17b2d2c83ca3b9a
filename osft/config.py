"""What a training run is asked to do: every parameter, its default and its check, written once.

``osft()``, the command line and the pipeline all hand their values to :class:`TrainingConfig`; a ``None`` of
theirs means the default written here. The resolved configuration is saved as JSON beside the results.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from osft.errors import ConfigError

FLAGS = (
    "use_liger", "use_processed_dataset", "unmask_messages", "is_pretraining", "checkpoint_at_epoch",
    "save_final_checkpoint", "protect_weights", "train_other_parameters", "save_memory", "remember",
)  # fmt: skip
# bfloat16 resolves changes of 1/256 to 1/512; a moment with this decay changes by up to 1/100 a step.
MAX_BETA_IN_BFLOAT16 = 0.99
PARAMETRIZATIONS = ("linear", "factored")
RANK_ALLOCATIONS = ("uniform", "adaptive")
BASE_MEMORIES = ("weights", "samples")
RESUME_CHOICES = ("auto", "never", "must")
# The seeds of numpy's and PyTorch's generators and torchrun's ids all take this much.
MAX_WHOLE_NUMBER = 2**32 - 1
# Schedules that move by a metric of an evaluation, which no step here has.
SCHEDULES_OF_A_METRIC = ("reduce_lr_on_plateau", "greedy")
# A name or address, an IPv6 one in brackets.
MAX_PORT = 65535
HOST_AND_PORT = re.compile(r"([^:\s]+|\[[^\]\s]+\]):\d{1,5}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """One OSFT training run.

    Raises:
        ConfigError: if a value is not allowed; the message names the parameter, the value and what is allowed.
    """

    model_path: str
    """Local folder or Hugging Face id of the model to fine-tune."""

    data_path: str
    """JSONL of messages or documents; with :attr:`use_processed_dataset`, JSONL or parquet of token ids."""

    unfreeze_rank_ratio: float
    """Share of each weight's singular directions that may move, 0 (none) to 1 (all)."""

    effective_batch_size: int
    """Samples per optimizer step, over all processes and micro-batches."""

    max_tokens_per_gpu: int
    """Most tokens that one process takes through the model at once; padding counts, where a model needs it."""

    max_seq_len: int
    """Longest sample in tokens; longer ones are dropped and counted."""

    learning_rate: float
    """Peak learning rate of AdamW."""

    ckpt_output_dir: str
    """Folder for checkpoints, metrics and the final model."""

    data_output_dir: str | None = None
    """Folder for validated and tokenized data; ``<ckpt_output_dir>/data`` if not given."""

    target_patterns: tuple[str, ...] | None = None
    """Regular expressions; a linear layer or stack of experts is a target if its name contains a match of one.
    ``None``: all of attention and MLP."""

    parametrization: str = "linear"
    """How a weight is trained: ``linear``, through coordinates of what may move, or ``factored``, the paper's U_low,
    S_low and V_low with projections: the reference, slow."""

    rank_allocation: str = "uniform"
    """``uniform``: :attr:`unfreeze_rank_ratio` holds for every weight; ``adaptive``: a layer that changes its input
    more has more free directions, around that ratio."""

    protect_inputs_of: str | None = None
    """Text, as JSONL of messages, documents or token ids, whose effect must stay: of each weight the directions that
    its inputs use most are protected, joined with the weight's own, and all of its outputs are free."""

    protect_weights: bool = True
    """With :attr:`protect_inputs_of`, ``False`` protects the inputs' directions alone; experts in stacks, which have
    no inputs of their own, keep the weights' ones."""

    subspace_memory: str | None = None
    """Folder of the memory of what the model has learnt so far, which an earlier run left: these directions of the
    inputs are protected, the weights' own fill what the ratio leaves of the room, and all outputs are free."""

    remember: bool = False
    """Leave such a memory in ``<ckpt_output_dir>/memory``: :attr:`subspace_memory` and what this run learnt. Without
    :attr:`subspace_memory` it begins with what the base model must keep, which is then protected."""

    calibration: str | None = None
    """Text, as JSONL of messages, documents or token ids, that stands for what the base model must keep: where
    :attr:`remember` begins a memory."""

    base_memory: str = "weights"
    """Where :attr:`remember` begins a memory without :attr:`calibration`: ``weights``: the base is not in the memory,
    its weights' directions are protected in the room that is left; or ``samples``: from texts that it writes itself."""

    train_other_parameters: bool = False
    """Train embeddings, norms, biases and head as well. They are not protected, so much is forgotten through them."""

    save_memory: bool = False
    """Keep what is needed once a step in the host's memory (in one process; of several each has a share of it on its
    GPU), and AdamW's moments in bfloat16."""

    decomposition_cache: str | None = None
    """Folder that keeps decompositions by the hash of their weight, so that the next run need not compute them."""

    seed: int = 42
    """Seed of the order of the samples and of PyTorch."""

    use_liger: bool = False
    """Patch the model with Liger kernels (needs the package and a GPU)."""

    use_processed_dataset: bool = False
    """:attr:`data_path` holds ``input_ids`` and ``labels`` already."""

    unmask_messages: bool = False
    """Train on every message but the system's, not on the assistant's alone."""

    is_pretraining: bool = False
    """:attr:`data_path` holds documents, cut into blocks of :attr:`block_size` tokens."""

    block_size: int | None = None
    """Tokens in a block of documents; needed with :attr:`is_pretraining`, an error without."""

    document_column_name: str = "document"
    """Column of the documents' text."""

    lr_scheduler: str = "cosine"
    """Name of a learning-rate schedule of transformers."""

    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""

    lr_scheduler_kwargs: Mapping[str, str | float] = field(default_factory=dict)
    """Further arguments of the schedule; numbers may be given as text."""

    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""

    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""

    eps: float = 1e-8
    """AdamW's term against division by zero."""

    weight_decay: float = 0.0
    """AdamW's decay of the trained values, which pulls a weight back to where it started."""

    checkpoint_at_epoch: bool = False
    """Save the model after each epoch."""

    save_final_checkpoint: bool = True
    """Save the model after the last step."""

    num_epochs: int = 1
    """Passes over the data."""

    checkpoint_every_steps: int | None = None
    """Optimizer steps between two states on disk to go on from; ``None``: none for their number."""

    checkpoint_every_minutes: float = 30.0
    """Minutes between two states on disk to go on from; 0: none for the time. What comes first, steps or minutes."""

    keep_checkpoints: int = 2
    """How many of these states stay, the newest; all are removed when the run ends well."""

    resume: str = "auto"
    """``auto``: go on from what is in :attr:`ckpt_output_dir`, an error if that is another configuration's;
    ``never``: remove it and start anew; ``must``: an error if there is nothing."""

    step_timeout_minutes: float = 30.0
    """How long a process may be in one step, or in loading, decomposing one weight or saving, before the run ends with
    an error that names it; without it a process that hangs keeps the others waiting."""

    nproc_per_node: int | None = None
    """Processes on this node; ``None``: one a GPU, one on a machine without."""

    nnodes: int = 1
    """Nodes of the run."""

    node_rank: int = 0
    """Number of this node, from 0."""

    rdzv_id: int | None = None
    """Id that the nodes of one run share; needed with more than one node."""

    rdzv_endpoint: str | None = None
    """``host:port`` of node 0; needed with more than one node."""

    def __post_init__(self) -> None:
        _require_text(self, "model_path", "data_path", "ckpt_output_dir", "document_column_name")
        _require_text(
            self, "data_output_dir", "rdzv_endpoint", "protect_inputs_of", "decomposition_cache", "subspace_memory",
            "calibration", optional=True,
        )  # fmt: skip
        _require_flag(self, *FLAGS)
        _require_range(self, "unfreeze_rank_ratio", 0.0, 1.0)
        _require_at_least_one(
            self, "effective_batch_size", "max_tokens_per_gpu", "max_seq_len", "num_epochs", "nnodes", "nproc_per_node",
            "checkpoint_every_steps", "keep_checkpoints",
        )  # fmt: skip
        _require_whole_number(self, "warmup_steps", "seed", "node_rank")
        _require_whole_number(self, "rdzv_id", optional=True)
        _require_not_negative(self, "weight_decay", "checkpoint_every_minutes")
        _require_range(self, "beta1", 0.0, 1.0, top_included=False)
        _require_range(self, "beta2", 0.0, 1.0, top_included=False)
        _require_positive(self, "learning_rate", "eps", "step_timeout_minutes")
        _check_scheduler(self.lr_scheduler)
        _check_scheduler_arguments(self.lr_scheduler_kwargs)
        _check_patterns(self.target_patterns)
        _require_choice(self, "parametrization", PARAMETRIZATIONS)
        _require_choice(self, "rank_allocation", RANK_ALLOCATIONS)
        _require_choice(self, "base_memory", BASE_MEMORIES)
        _require_choice(self, "resume", RESUME_CHOICES)
        self._check_protection()
        self._check_memory()
        self._check_data_mode()
        self._check_nodes()

    def _check_data_mode(self) -> None:
        if self.is_pretraining and self.block_size is None:
            raise ConfigError(
                "block_size is None but is_pretraining=True needs it. Give the tokens of a block, e.g. 2048."
            )
        if self.block_size is not None:
            _require_at_least_one(self, "block_size")
            if not self.is_pretraining:
                raise ConfigError(
                    f"block_size={self.block_size} is only for is_pretraining=True. Leave one of them out."
                )
            if self.block_size > self.max_seq_len:
                raise ConfigError(
                    f"block_size={self.block_size} is above max_seq_len={self.max_seq_len}. Raise max_seq_len to it."
                )
        if self.is_pretraining and self.unmask_messages:
            raise ConfigError(
                "unmask_messages=True is for messages, not for is_pretraining=True. Leave one of them out."
            )
        if self.is_pretraining and self.use_processed_dataset:
            raise ConfigError(
                "use_processed_dataset=True skips what is_pretraining=True asks for. Leave one of them out."
            )

    def _check_protection(self) -> None:
        if not self.protect_weights and self.protect_inputs_of is None:
            raise ConfigError(
                "protect_weights=False leaves nothing that is protected. Give protect_inputs_of, or leave it out."
            )
        if self.parametrization == "factored" and self.save_memory:
            raise ConfigError("save_memory=True is for parametrization='linear'. Leave one of them out.")
        if self.save_memory and max(self.beta1, self.beta2) > MAX_BETA_IN_BFLOAT16:
            raise ConfigError(
                f"beta1={self.beta1}, beta2={self.beta2}: save_memory=True holds at most {MAX_BETA_IN_BFLOAT16}, since "
                "smaller changes of a moment are lost in bfloat16. Lower them, or leave save_memory out."
            )

    def _check_memory(self) -> None:
        if self.protect_inputs_of is not None and (self.remember or self.subspace_memory is not None):
            raise ConfigError(
                "protect_inputs_of is for a run without a memory. Leave it out, or give the text as calibration, which "
                "the first run with remember=True takes into its memory."
            )
        if self.calibration is not None and not self.remember:
            raise ConfigError("calibration is for remember=True. Give protect_inputs_of, or remember=True.")
        if self.calibration is not None and self.base_memory == "samples":
            raise ConfigError("calibration and base_memory='samples' exclude each other. Leave one of them out.")

    def _check_nodes(self) -> None:
        if self.nnodes > 1 and self.rdzv_endpoint is None:
            raise ConfigError(f"rdzv_endpoint is None but nnodes={self.nnodes} needs it. Give 'host:port' of node 0.")
        if self.nnodes > 1 and self.rdzv_id is None:
            raise ConfigError(f"rdzv_id is None but nnodes={self.nnodes} needs it. Give the same number on every node.")
        if self.rdzv_endpoint is not None and not HOST_AND_PORT.fullmatch(self.rdzv_endpoint):
            raise ConfigError(f"rdzv_endpoint='{self.rdzv_endpoint}' is not 'host:port', e.g. '10.0.0.5:29500'.")
        if self.rdzv_endpoint is not None and int(self.rdzv_endpoint.rpartition(":")[2]) > MAX_PORT:
            raise ConfigError(f"rdzv_endpoint='{self.rdzv_endpoint}' has a port above {MAX_PORT}.")
        if not 0 <= self.node_rank < self.nnodes:
            raise ConfigError(f"node_rank={self.node_rank} is not in 0 to nnodes-1 ({self.nnodes - 1}).")

    @property
    def checkpoint_directory(self) -> Path:
        """:attr:`ckpt_output_dir` as a path."""
        return Path(self.ckpt_output_dir)

    @property
    def data_directory(self) -> Path:
        """Where the tokenized data goes."""
        return Path(self.data_output_dir) if self.data_output_dir else self.checkpoint_directory / "data"

    @property
    def data_format(self) -> str:
        """What a row of :attr:`data_path` is: ``processed``, ``documents`` or ``messages``."""
        if self.use_processed_dataset:
            return "processed"
        return "documents" if self.is_pretraining else "messages"


def _require_text(config: TrainingConfig, *names: str, optional: bool = False) -> None:
    for name in names:
        value = getattr(config, name)
        if optional and value is None:
            continue
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{name}={value!r} is not text. Give a non-empty string.")


def _require_choice(config: TrainingConfig, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(choices)}.")


def _require_flag(config: TrainingConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r} is neither True nor False.")


def _require_whole_number(config: TrainingConfig, *names: str, optional: bool = False) -> None:
    for name in names:
        value = getattr(config, name)
        if optional and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_WHOLE_NUMBER:
            raise ConfigError(f"{name}={value!r} is not a whole number from 0 to {MAX_WHOLE_NUMBER}.")


def _number(config: TrainingConfig, name: str) -> float:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}={value!r} is not a number.")
    return value


def _require_range(config: TrainingConfig, name: str, low: float, high: float, *, top_included: bool = True) -> None:
    value = _number(config, name)
    if not (low <= value <= high if top_included else low <= value < high):
        raise ConfigError(f"{name}={value} is not in {low} to {high}{'' if top_included else ' (excluded)'}.")


def _require_at_least_one(config: TrainingConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r} is not a whole number of at least 1.")


def _require_not_negative(config: TrainingConfig, *names: str) -> None:
    for name in names:
        # Written so that NaN, which compares false with everything, is refused too.
        if not 0 <= _number(config, name) < float("inf"):
            raise ConfigError(f"{name}={getattr(config, name)} is not 0 or more and finite.")


def _require_positive(config: TrainingConfig, *names: str) -> None:
    for name in names:
        if not 0 < _number(config, name) < float("inf"):
            raise ConfigError(f"{name}={getattr(config, name)} is not above 0 and finite.")


def _check_scheduler(name: str) -> None:
    # Imported here: transformers takes seconds to load, and most of what imports this module never trains.
    from transformers import SchedulerType

    known = sorted(kind.value for kind in SchedulerType if kind.value not in SCHEDULES_OF_A_METRIC)
    if name not in known:
        raise ConfigError(f"lr_scheduler='{name}' is not one of {', '.join(known)}.")


def _check_scheduler_arguments(arguments: object) -> None:
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ConfigError(f"lr_scheduler_kwargs={arguments!r} is not a mapping from names to values.")


def _check_patterns(patterns: tuple[str, ...] | None) -> None:
    if patterns is not None and not (isinstance(patterns, tuple) and all(isinstance(p, str) for p in patterns)):
        raise ConfigError(f"target_patterns={patterns!r} is not a list of regular expressions.")
    if patterns is not None and not patterns:
        raise ConfigError("target_patterns=[] targets nothing. Leave it out to target every linear of the blocks.")
    for pattern in patterns or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"target_patterns: '{pattern}' is not a regular expression ({error}).") from error
