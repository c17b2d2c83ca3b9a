"""What an evaluation asks two models, and the limits of the gate.

Kept apart from the code that runs it so that a command line or a pipeline step can build and check a
configuration without paying for the import of torch and lm-eval (some seconds).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from osft.errors import ConfigError

HOLDOUT_TASK = "holdout"
"""Name under which the held-out rows of the new data are evaluated."""

FLOAT_SETTINGS = frozenset(
    {
        "temperature",
        "top_p",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "repetition_penalty",
        "encoder_repetition_penalty",
        "length_penalty",
        "frequency_penalty",
        "presence_penalty",
        "guidance_scale",
    }
)
"""Generation settings that transformers takes as ``float`` and nothing else."""

Backend = Literal["hf", "vllm", "openai"]
"""What runs the models: transformers here, vLLM here, or a server that speaks OpenAI's completions protocol."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Parameters of :func:`osft.evaluation.evaluate.evaluate_forgetting`, checked when it is made.

    Raises:
        ConfigError: if a value is not allowed; the message names the parameter, the value and what is allowed.
    """

    tasks: tuple[str, ...]
    """Retention tasks: what the base model knows and must keep. Names of lm-eval tasks or groups, at least one."""

    target_tasks: tuple[str, ...] = ()
    """Tasks that measure what was to be learnt."""

    include_path: Path | None = None
    """Folder with the user's own lm-eval YAML tasks."""

    holdout: Path | None = None
    """``holdout.parquet`` or its folder; evaluated as the target task ``holdout``. None: no such task."""

    earlier_holdouts: Mapping[str, Path] = field(default_factory=dict)
    """The rows that earlier versions held out, by the name under which each is a retention task (``holdout_v0001``):
    a ``holdout.parquet`` or its folder. In the means all of them count as one (:mod:`osft.evaluation.pooling`)."""

    base_version: str | None = None
    """The version that the base is, e.g. ``v0002``; None: it is none."""

    ancestor_measurements: Mapping[str, Path] = field(default_factory=dict)
    """What each version that the base descends from answered, oldest first: its folder of measurements, a file for each
    task. ``v0000`` is the origin. The base is asked anew, and need not be among them."""

    origin: str | None = None
    """The model that the chain of versions began with. It is loaded only for what :attr:`ancestor_measurements` do not
    tell of it. None: it is the base, or nothing but those measurements is known of it."""

    probe: Path | None = None
    """A text (``.txt`` or ``.md``, its documents parted by blank lines, or ``.jsonl`` with ``text`` or ``messages``):
    perplexity of both models on it, and how far they differ."""

    num_fewshot: int | None = None
    """Examples in each prompt; None takes each task's own number. A task that fixes it to 0 keeps 0."""

    limit: int | None = None
    """Evaluate only the first documents of each task, this many; None evaluates all."""

    batch_size: int | Literal["auto"] = 16
    """Sequences in one forward pass; ``"auto"`` tries what fits, from 64 downwards."""

    apply_chat_template: bool = True
    """Format prompts with the tokenizer's chat template; without effect where the models have none."""

    generation: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the tasks' generation settings, e.g. ``{"max_gen_toks": 128}``."""

    backend: Backend = "hf"
    base_url: str | None = None
    """Endpoint of ``backend="openai"``, e.g. ``http://localhost:8000/v1/completions``."""

    max_forgetting: float = 0.05
    """Largest ``forgetting_upper`` that passes, as a share of the score (0.05 is five points of accuracy)."""

    max_cumulative_forgetting: float = 0.1
    """Largest forgetting against the best that any version before reached that passes, on the upper confidence bound;
    not asked for where there is no version before the base."""

    task_limits: Mapping[str, float] = field(default_factory=dict)
    """Largest loss that passes, on the upper confidence bound, by name in ``tasks`` or ``earlier_holdouts``; of a
    group, each of its tasks'."""

    min_target_gain: float = 0.0
    """Smallest ``target_gain`` that passes; not asked for where there is no target at all."""

    seed: int = 42
    """Seed of Python, numpy, torch, the choice of few-shot examples, and the bootstrap."""

    def __post_init__(self) -> None:
        for name in ("tasks", "target_tasks"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        for name in ("include_path", "holdout", "probe"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        for name in ("earlier_holdouts", "ancestor_measurements"):
            object.__setattr__(self, name, {key: Path(path) for key, path in getattr(self, name).items()})
        object.__setattr__(self, "generation", with_number_types(self.generation))
        self._check_tasks()
        self._check_numbers()
        self._check_task_limits()
        self._check_backend()

    @property
    def has_target(self) -> bool:
        """Whether anything measures what was to be learnt."""
        return bool(self.target_tasks) or self.holdout is not None

    @property
    def has_chain(self) -> bool:
        """Whether there is a version before the base that the tuned model is held against."""
        return self.origin is not None or any(name != self.base_version for name in self.ancestor_measurements)

    def _check_tasks(self) -> None:
        if not self.tasks:
            raise ConfigError("tasks is empty. Name at least one retention task: what the base model must keep.")
        rows = [*self.earlier_holdouts, *([HOLDOUT_TASK] if self.holdout else [])]
        every = [*self.tasks, *self.target_tasks, *rows]
        if twice := sorted({name for name in every if every.count(name) > 1}):
            taken = next((f"; '{name}' is the name of the held-out rows." for name in twice if name in rows), ".")
            raise ConfigError(
                f"tasks and target_tasks name {', '.join(twice)} more than once. Name each task once, in one of "
                f"them{taken}"
            )

    def _check_numbers(self) -> None:
        _check_count("num_fewshot", self.num_fewshot, minimum=0)
        _check_count("limit", self.limit, minimum=1)
        if self.batch_size != "auto":
            _check_count("batch_size", self.batch_size, minimum=1)
        if self.batch_size is None:
            raise ConfigError("batch_size is None. Give a whole number from 1 or 'auto'.")
        for name in ("max_forgetting", "max_cumulative_forgetting"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}. Give a number from 0 to 1.")
        if not -1 <= self.min_target_gain <= 1:
            raise ConfigError(f"min_target_gain is {self.min_target_gain}. Give a number from -1 to 1.")
        if self.min_target_gain > 0 and not self.has_target:
            raise ConfigError(
                f"min_target_gain is {self.min_target_gain}, but nothing measures the gain. "
                "Give target_tasks or holdout, or min_target_gain 0."
            )

    def _check_task_limits(self) -> None:
        for task, limit in self.task_limits.items():
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= 1:
                raise ConfigError(f"task_limits gives '{task}' the limit {limit!r}. Give a number from 0 to 1.")
            if task not in (kept := (*self.tasks, *self.earlier_holdouts)):
                raise ConfigError(f"task_limits names '{task}', which is not in tasks: {', '.join(kept)}.")

    def _check_backend(self) -> None:
        if self.backend not in get_args(Backend):
            raise ConfigError(f"backend is '{self.backend}'. Give one of {', '.join(get_args(Backend))}.")
        if (self.backend == "openai") != (self.base_url is not None):
            raise ConfigError(
                f"backend '{self.backend}' with base_url '{self.base_url}'. "
                "Give base_url with backend openai, and only there."
            )
        if "@" in (self.base_url or "").partition("://")[2].partition("/")[0]:
            raise ConfigError("base_url holds a user's name or password. Leave it out: the key is OPENAI_API_KEY's.")
        if self.probe is not None and self.backend != "hf":
            raise ConfigError(f"probe needs all logits, which backend '{self.backend}' does not give. Use backend hf.")
        if self.backend == "openai" and self.batch_size == "auto":
            raise ConfigError("batch_size is 'auto', which a server has no answer to. Give a whole number.")


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a list separated by commas; an empty text has none."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def with_number_types(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation settings with numbers of the types that transformers insists on.

    KFP keeps a parameter's mapping as a protobuf ``Struct``, whose numbers are all doubles: 256 tokens arrive as 256.0.
    A temperature of 2, on the other hand, must be 2.0.
    """
    return {name: _number(value, is_float=name in FLOAT_SETTINGS) for name, value in generation.items()}


def _number(value: Any, *, is_float: bool) -> Any:
    if isinstance(value, list):
        return [_number(one, is_float=is_float) for one in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if is_float:
        return float(value)
    return int(value) if float(value).is_integer() else value


def _names(parameter: str, value: object) -> tuple[str, ...]:
    """Return ``value`` as a tuple of names; a bare string would be taken apart into letters."""
    if isinstance(value, str) or not isinstance(value, tuple | list):
        raise ConfigError(f"{parameter} is {value!r}. Give a tuple of task names.")
    if bad := [name for name in value if not isinstance(name, str) or not name.strip()]:
        raise ConfigError(f"{parameter} holds {bad[0]!r}. Every task name is text and not empty.")
    return tuple(value)


def _check_count(parameter: str, value: object, *, minimum: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{parameter} is {value!r}. Give a whole number from {minimum}.")
