"""Which lm-eval tasks a name stands for, loaded once for both models.

Three things lm-eval 0.4.13 leaves open are settled here:

- A YAML task's relative ``dataset_kwargs.data_files`` (or ``data_dir``) is taken by lm-eval relative to the
  working directory of the process. Here it is relative to the folder of the YAML, so that a folder of tasks
  works wherever it is mounted. Only the user's own tasks are treated so, and of them only those whose
  ``dataset_path`` is a file format and not a repository on the Hub.
- lm-eval's index of its 14,000 own tasks takes seconds to build. It is built only if a name is not in the
  user's folder.
- An unknown name is answered with the names that look like it.
"""

import difflib
import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import load_yaml

from osft.errors import ConfigError, EvaluationError, MissingPathError, one_line
from osft.evaluation.config import EvaluationConfig
from osft.evaluation.forgetting import Kind

logger = logging.getLogger(__name__)

FILE_FORMATS = frozenset({"arrow", "csv", "json", "pandas", "parquet", "sql", "text", "xml"})
"""Values of ``dataset_path`` that name a loader of local files (``datasets.packaged_modules``)."""

NEAR_MATCHES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestedTask:
    """One name as the user gave it, with what it stands for."""

    name: str
    kind: Kind
    item: Task | Group
    """What lm-eval evaluates; a tag becomes several requested tasks."""

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the tasks that are evaluated."""
        if isinstance(self.item, Group):
            return tuple(task.task_name for task in self.item.get_all_tasks())
        return (self.item.task_name,)

    def pools(self, metric: str) -> bool:
        """Return whether lm-eval scores this group as one, over all documents alike, by ``metric``."""
        if not isinstance(self.item, Group):
            return False
        aggregates = [one for one in self.item.aggregate_metric_list or [] if one.metric == metric]
        return bool(aggregates) and all(one.weight_by_size and one.aggregation == "mean" for one in aggregates)


def load_tasks(config: EvaluationConfig) -> tuple[RequestedTask, ...]:
    """Load the retention and target tasks with their data.

    Raises:
        MissingPathError: if ``include_path`` does not exist.
        ConfigError: if two of the names stand for the same task.
        EvaluationError: if a name is unknown, or a task or its data cannot be loaded.
    """
    if config.include_path is not None and not config.include_path.is_dir():
        raise MissingPathError(
            f"include_path '{config.include_path}' is no folder. Give the folder of your YAML tasks."
        )
    names = (*config.tasks, *config.target_tasks)
    manager = _task_manager(names, config.include_path)
    requested: list[RequestedTask] = []
    for name in names:
        kind: Kind = "retention" if name in config.tasks else "target"
        items = _load(manager, name)
        requested += [
            RequestedTask(name=name if len(items) == 1 else item.task_name, kind=kind, item=item) for item in items
        ]
    _check_no_overlap(requested)
    return tuple(requested)


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


def _task_manager(names: tuple[str, ...], include_path: Path | None) -> TaskManager:
    """Return a manager that knows every name, with lm-eval's own tasks only where they are needed."""
    if include_path is not None:
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if all(_is_complete(manager, name) for name in names):
            return _with_resolved_data_files(manager, include_path)
    logger.info("reading lm-eval's index of tasks")
    manager = TaskManager(include_path=str(include_path) if include_path else None)
    for name in names:
        if name not in manager.task_index:
            raise EvaluationError(_unknown_task(name, manager, include_path))
    return _with_resolved_data_files(manager, include_path) if include_path else manager


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
    near = difflib.get_close_matches(name, manager.all_tasks, n=NEAR_MATCHES, cutoff=0.6)
    meant = f" Did you mean {', '.join(near)}?" if near else ""
    where = f"lm-eval and {include_path}" if include_path else "lm-eval"
    mend = "" if near else " Check the spelling, or give include_path, the folder of your YAML tasks."
    return f"task '{name}' is not known to {where}.{meant}{mend}"


def _with_resolved_data_files(manager: TaskManager, include_path: Path) -> TaskManager:
    """Replace the user's entries of the manager's index by ones whose data files are absolute paths."""
    root = include_path.resolve()
    for name, entry in list(manager.task_index.items()):
        if entry.yaml_path is None or not entry.yaml_path.resolve().is_relative_to(root):
            continue
        folder = entry.yaml_path.resolve().parent
        # An entry without a YAML path is built from its configuration, which is lm-eval's own route for
        # configurations that do not come from a file; functions must then be resolved, as load_yaml does.
        try:
            content = load_yaml(entry.yaml_path)
        except (ImportError, AttributeError, ValueError) as error:
            raise EvaluationError(f"{entry.yaml_path}: the task cannot be read ({error}).") from error
        manager.task_index[name] = replace(entry, yaml_path=None, cfg=resolve_data_files(deepcopy(content), folder))
    return manager


def _load(manager: TaskManager, name: str) -> list[Task | Group]:
    """Return what ``name`` stands for: a task, a group, or the tasks of a tag."""
    logger.info("loading task %s", name)
    try:
        loaded = manager.load([name])
    except Exception as error:  # loaders of data raise anything; nothing is hidden: the cause is named and chained
        raise EvaluationError(
            f"task '{name}' cannot be loaded: {type(error).__name__}: {one_line(error)}. "
            "Check its YAML and that its data is there; without a network (HF_HUB_OFFLINE=1) it must be in the cache."
        ) from error
    if name in loaded.get("groups", {}):
        return [loaded["groups"][name]]
    return list(loaded["tasks"].values())


def _check_no_overlap(requested: list[RequestedTask]) -> None:
    """Refuse a task that two names stand for: it would count twice, and lm-eval evaluates it once."""
    seen: dict[str, str] = {}
    for one in requested:
        for leaf in one.leaves:
            if leaf in seen:
                raise ConfigError(
                    f"tasks '{seen[leaf]}' and '{one.name}' both contain '{leaf}'. Name it in one of them."
                )
            seen[leaf] = one.name
