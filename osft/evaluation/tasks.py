"""Which lm-eval tasks a name stands for, loaded once for both models.

What lm-eval 0.4.13 leaves open is settled here:

- A YAML task's relative ``dataset_kwargs.data_files`` (or ``data_dir``) is taken by lm-eval relative to the
  working directory of the process. Here it is relative to the folder of the YAML, so that a folder of tasks
  works wherever it is mounted. Only the user's own tasks are treated so, and of them only those whose
  ``dataset_path`` is a file format and not a repository on the Hub.
- lm-eval's index of its 14,000 own tasks takes seconds to build. It is needed only if a name is not in the user's
  folder, and then taken from the cache.
- An unknown name is answered with the names that look like it.
- What a task draws at random is drawn once, from the configuration's seed (:mod:`osft.evaluation.documents`).
- A task without documents, or whose metric has no direction, is refused before anything is measured.
"""

import difflib
import logging
import traceback
from collections.abc import Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import load_yaml
from yaml import YAMLError

from osft.errors import ConfigError, EvaluationError, MissingPathError, one_line
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.documents import draw_documents, seeded
from osft.evaluation.forgetting import Kind
from osft.evaluation.holdout import HoldoutTask
from osft.evaluation.identity import uses_code
from osft.evaluation.metric_choice import choose_metric, is_higher_better
from osft.evaluation.task_index import own_tasks
from osft.file_hashes import sha256_of_path

logger = logging.getLogger(__name__)

FILE_FORMATS = frozenset({"arrow", "csv", "json", "pandas", "parquet", "sql", "text", "xml"})
"""Values of ``dataset_path`` that name a loader of local files (``datasets.packaged_modules``)."""

NEAR_MATCHES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestedTask:
    """One name as the user gave it, with what it stands for."""

    name: str
    asked_as: str
    """The user's word for it: another one for the tasks of a tag."""

    kind: Kind
    item: Task | Group
    """What lm-eval evaluates; a tag becomes several requested tasks."""

    include_path_sha256: str | None = None
    """Of all files of ``include_path``, where a function from there may read any of them."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that are evaluated: the item itself, or all of a group's, each once."""
        every = self.item.get_all_tasks() if isinstance(self.item, Group) else [self.item]
        # A task in two subgroups is there twice; as in lm-eval the later one is taken.
        return tuple({task.task_name: task for task in every}.values())

    @property
    def is_earlier_holdout(self) -> bool:
        """Whether these are rows that an earlier version held out; the run's own are what is to be learnt."""
        return self.kind == "retention" and isinstance(self.item, HoldoutTask)

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the tasks that are evaluated."""
        return tuple(task.task_name for task in self.tasks)

    @property
    def joined_metrics(self) -> tuple[str, ...]:
        """Names of the metrics that lm-eval joins over the tasks of this group."""
        aggregates = self.item.aggregate_metric_list if isinstance(self.item, Group) else None
        return tuple(one.metric for one in aggregates or [])

    def pools(self, metric: str) -> bool:
        """Return whether lm-eval scores this group as one, over all documents alike, by ``metric``."""
        if not isinstance(self.item, Group):
            return False
        aggregates = [one for one in self.item.aggregate_metric_list or [] if one.metric == metric]
        return bool(aggregates) and all(one.weight_by_size and one.aggregation == "mean" for one in aggregates)


def load_tasks(config: EvaluationConfig, *, cache: Path | None = None) -> tuple[RequestedTask, ...]:
    """Load the retention and target tasks with their data.

    Args:
        config: the names, and the settings that the tasks get.
        cache: folder in which the index of lm-eval's own tasks is kept; None builds it anew where it is needed.

    Raises:
        MissingPathError: if ``include_path`` does not exist.
        ConfigError: if two of the names stand for the same task.
        EvaluationError: if a name is unknown, a task or its data cannot be loaded, it has no documents, runs code of
            the model, or its metric has no direction.
    """
    if config.include_path is not None and not config.include_path.is_dir():
        raise MissingPathError(
            f"include_path '{config.include_path}' is no folder. Give the folder of your YAML tasks."
        )
    names = (*config.tasks, *config.target_tasks)
    manager, users_names = _task_manager(names, config.include_path, cache)
    requested: list[RequestedTask] = []
    for name in names:
        kind: Kind = "retention" if name in config.tasks else "target"
        with seeded(config.seed):
            items = _load(manager, name)
        requested += [
            RequestedTask(name=name if len(items) == 1 else item.task_name, asked_as=name, kind=kind, item=item)
            for item in items
        ]
    check_no_overlap(requested)
    for one in requested:
        for task in one.tasks:
            _prepare(task, config)
            _check_metric(task, one.joined_metrics)
    return _with_include_path(requested, users_names, config.include_path)


def check_no_overlap(requested: Sequence[RequestedTask]) -> None:
    """Refuse a task that two names stand for: it would count twice, and lm-eval evaluates it once.

    Args:
        requested: the tasks, held-out rows last if there are any.

    Raises:
        ConfigError: if there is one.
    """
    seen: dict[str, str] = {}
    for one in requested:
        for leaf in one.leaves:
            if leaf in seen:
                mend = (
                    f"'{leaf}' is the name of the held-out rows: rename the task in its YAML."
                    if isinstance(one.item, HoldoutTask)
                    else "Name it in one of them."
                )
                raise ConfigError(f"tasks '{seen[leaf]}' and '{one.name}' both contain '{leaf}'. {mend}")
            seen[leaf] = one.name


def resolve_data_files(config: Mapping[str, Any], folder: Path, *, dataset_path: str | None = None) -> dict[str, Any]:
    """Return a YAML task or group with its relative data files made absolute.

    Args:
        config: the YAML's content; not changed.
        folder: where the YAML lies.
        dataset_path: the loader that the enclosing group names, if any.
    """
    resolved = dict(config)
    dataset_path = resolved.get("dataset_path", dataset_path)
    if isinstance(resolved.get("dataset_kwargs"), Mapping) and (dataset_path is None or dataset_path in FILE_FORMATS):
        resolved["dataset_kwargs"] = {
            key: _absolute(value, folder) if key in ("data_files", "data_dir") else value
            for key, value in resolved["dataset_kwargs"].items()
        }
    if isinstance(members := resolved.get("task"), list):
        resolved["task"] = [
            resolve_data_files(member, folder, dataset_path=dataset_path) if isinstance(member, Mapping) else member
            for member in members
        ]
    return resolved


def _absolute(value: Any, folder: Path) -> Any:
    """Return ``value`` (a path, a list or a mapping of them) with relative paths put below ``folder``."""
    if isinstance(value, str):
        return value if "://" in value or Path(value).is_absolute() else str(folder / value)
    if isinstance(value, Mapping):
        return {key: _absolute(one, folder) for key, one in value.items()}
    return [_absolute(one, folder) for one in value]


def _task_manager(
    names: tuple[str, ...], include_path: Path | None, cache: Path | None
) -> tuple[TaskManager, frozenset[str]]:
    """Return a manager that knows every name, with lm-eval's own tasks only where needed, and the user's names."""
    manager = TaskManager(include_path=str(include_path) if include_path else None, include_defaults=False)
    users_names = frozenset(manager.task_index)
    if include_path is not None:
        _resolve_data_files(manager)
    if not all(_is_complete(manager, name) for name in names):
        for name, entry in own_tasks(cache).items():
            manager.task_index.setdefault(name, entry)
    for name in names:
        if name not in manager.task_index:
            raise EvaluationError(_unknown_task(name, manager, include_path))
    return manager, users_names


def _is_complete(manager: TaskManager, name: str) -> bool:
    """Return whether ``name``, and every member if it is a group, is in the manager's index."""
    entry = manager.task_index.get(name)
    if entry is None:
        return False
    members = (entry.cfg or {}).get("task")
    if not isinstance(members, list):
        return True
    return all(isinstance(member, str) and _is_complete(manager, member) for member in members)


def _unknown_task(name: str, manager: TaskManager, include_path: Path | None) -> str:
    near = difflib.get_close_matches(name, manager.task_index, n=NEAR_MATCHES, cutoff=0.6)
    meant = f" Did you mean {', '.join(near)}?" if near else ""
    where = f"lm-eval and {include_path}" if include_path else "lm-eval"
    mend = "" if near else " Check the spelling, or give include_path, the folder of your YAML tasks."
    return f"task '{name}' is not known to {where}.{meant}{mend}{_unreadable(include_path)}"


def _unreadable(include_path: Path | None) -> str:
    """Return a sentence on the user's YAML files that lm-eval skips, because it cannot read them."""
    for path in sorted(include_path.rglob("*.yaml")) if include_path else ():
        try:
            load_yaml(path, resolve_func=False)
        except (OSError, ValueError, YAMLError) as error:
            return f" {path} cannot be read: {one_line(error)}."
    return ""


def _resolve_data_files(manager: TaskManager) -> None:
    """Replace the entries of the manager's index by ones whose data files are absolute paths."""
    for name, entry in list(manager.task_index.items()):
        if entry.yaml_path is None:
            continue
        # An entry without a YAML path is built from its configuration, which is lm-eval's own route for
        # configurations that do not come from a file; functions must then be resolved, as load_yaml does.
        try:
            content = load_yaml(entry.yaml_path)
        except (ImportError, AttributeError, ValueError) as error:
            raise EvaluationError(f"{entry.yaml_path}: the task cannot be read ({error}).") from error
        folder = entry.yaml_path.resolve().parent
        manager.task_index[name] = replace(entry, yaml_path=None, cfg=resolve_data_files(deepcopy(content), folder))


def _load(manager: TaskManager, name: str) -> list[Task | Group]:
    """Return what ``name`` stands for: a task, a group, or the tasks of a tag."""
    logger.info("loading task %s", name)
    try:
        loaded = manager.load([name])
    except Exception as error:  # loaders of data raise anything; nothing is hidden: the cause is named and chained
        raise EvaluationError(_without_documents(error) or _unloadable(name, error)) from error
    if name in loaded.get("groups", {}):
        return [loaded["groups"][name]]
    return list(loaded["tasks"].values())


def _unloadable(name: str, error: Exception) -> str:
    """Return what to do about a task that cannot be loaded, by what went wrong."""
    cause = one_line(error)
    if isinstance(error, ConnectionError):
        return (
            f"task '{name}': its data set is not in the cache {datasets.config.HF_DATASETS_CACHE} and cannot be "
            f"fetched: {cause}. Load the task once where there is a network, with the same HF_HOME, or copy that "
            "machine's cache here."
        )
    if isinstance(error, ModuleNotFoundError):
        return f"task '{name}' needs a package that is not installed: {cause}. Install it, or leave the task out."
    return (
        f"task '{name}' cannot be loaded: {type(error).__name__}: {cause}. "
        "Check its YAML and that its data is there; without a network (HF_HUB_OFFLINE=1) it must be in the cache."
    )


def _without_documents(error: Exception) -> str | None:
    """Return what to do about a task that has no documents, if that is what went wrong."""
    # lm-eval looks at the first document as it makes the task, and its error does not say of which: the frames do.
    for frame, _ in traceback.walk_tb(error.__traceback__) if isinstance(error, IndexError) else ():
        task = frame.f_locals.get("self")
        if isinstance(task, ConfigurableTask) and hasattr(task, "task_docs") and not len(task.task_docs):
            return _no_documents(task)
    return None


def _no_documents(task: Task) -> str:
    split = task.get_config("test_split") or task.get_config("validation_split")
    place = f" in split '{split}'" if split else ""
    by = " after process_docs" if task.get_config("process_docs") else ""
    return f"task '{task.task_name}' has no documents{place}{by}. Check its data, and what its functions leave of it."


def _prepare(task: Task, config: EvaluationConfig) -> None:
    """Give a task its settings and, if its own code makes them, its documents."""
    _apply_settings(task, config)
    try:
        if uses_code(task):
            draw_documents(task, config.seed)
        num_documents = len(task.eval_docs)
    except Exception as error:  # a task's own code raises anything, as in _load
        raise EvaluationError(_unloadable(task.task_name, error)) from error
    if not num_documents:
        raise EvaluationError(_no_documents(task))


def _check_metric(task: Task, joined: Sequence[str]) -> None:
    """Refuse a task whose metric has no direction, by what it declares."""
    directions = task.higher_is_better()
    if directions:
        metric, _ = choose_metric(task.task_name, [(metric, "") for metric in directions], joined=joined)
        is_higher_better(task.task_name, metric, directions)


def _with_include_path(
    requested: Sequence[RequestedTask], users_names: Set[str], include_path: Path | None
) -> tuple[RequestedTask, ...]:
    """Return the tasks, those of the user that run functions with the hash of the folder they come from."""
    has_users_code = [
        bool(users_names & {one.name, one.asked_as, *one.leaves}) and any(map(uses_code, one.tasks))
        for one in requested
    ]
    if include_path is None or not any(has_users_code):
        return tuple(requested)
    digest = sha256_of_path(include_path)
    return tuple(
        replace(one, include_path_sha256=digest) if is_users else one
        for one, is_users in zip(requested, has_users_code, strict=True)
    )


def _apply_settings(task: Task, config: EvaluationConfig) -> None:
    """Set the few-shot examples and the generation settings that the user asked for.

    A task whose own number of examples is 0 keeps it, as in lm-eval: its prompt is whole as it is.
    """
    if getattr(task, "UNSAFE_CODE", False):
        raise EvaluationError(
            f"task '{task.task_name}' runs code that the model writes, which an evaluation beside your data and models "
            "must not. Leave it out, or run it with lm-eval in a sandbox."
        )
    own = task.get_config("num_fewshot")
    if own is None or (config.num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=config.num_fewshot or 0)
    if config.generation and task.OUTPUT_TYPE == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(config.generation), update=True)
