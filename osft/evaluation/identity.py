"""What a model and a task are, by content: two with equal fingerprints give equal measurements.

Results are kept under these fingerprints, so the rule is: whatever can change a number changes the fingerprint, and
where a copy lies, when it was made and in which process it is looked at does not.

- **Model**: names and bytes of the files that decide what it computes and how it is prompted. What else lies in the
  folder (a manifest, a model card) is left out, so that a promoted model is known as the one that was trained.
- **Task**: its configuration as lm-eval resolved it, the code of every function in it, and every document and example
  as its functions made them: two draws of random numbers are two tasks. The code of a function is taken as all Python
  files in its folder, because it may import from its neighbours. A function may read more than that: what lies
  elsewhere in the user's folder of tasks, and the versions of packages that score, are parts of a measurement's key
  of their own (:func:`uses_code`, :func:`code_versions`).
"""

import functools
import importlib.metadata
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import datasets
import orjson
import pyarrow as pa
from datasets.fingerprint import Hasher
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.loggers.utils import get_commit_from_path

from osft.content_cache import content_key
from osft.evaluation.holdout import HoldoutTask
from osft.file_hashes import file_sha256s
from osft.workspace import sha256_of_file

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "pytorch_model*.bin",
    "*.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*",
)
"""What transformers reads of a model's folder for text, by glob."""

MEMO_NAME = "file-hashes"

SCORING_PACKAGES = (
    "evaluate",
    "langdetect",
    "math-verify",
    "nltk",
    "rouge-score",
    "sacrebleu",
    "scikit-learn",
    "sympy",
)
"""What lm-eval's tasks score answers with, where it is installed."""

ROWS_PER_BATCH = 1_000
"""Rows hashed at once: few calls, and only some megabytes in memory."""


def model_fingerprint(folder: Path, *, memo: Path | None) -> str:
    """Return one sha256 over the names and contents of a model's files.

    Args:
        folder: the model's folder; its files may be links, as in the Hub's cache.
        memo: folder under which the hashes of files are remembered; None reads every file.

    Raises:
        EvaluationError: if a file cannot be read.
    """
    paths = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if not path.is_dir()})
    hashes = file_sha256s(paths, memo=memo / MEMO_NAME if memo else None)
    return content_key(
        {path.relative_to(folder).as_posix(): digest for path, digest in zip(paths, hashes, strict=True)}
    )


def task_fingerprint(task: Task) -> str:
    """Return one sha256 over all that decides what a task asks and how it scores.

    Args:
        task: loaded, with the number of few-shot examples and the generation settings that it will run with.
    """
    if isinstance(task, HoldoutTask):
        return task.fingerprint
    digest = sha256(_json(_definition(task)))
    for name, rows in _documents(task):
        digest.update(f"\0{name}\0".encode())
        for part in _row_bytes(rows):
            digest.update(part)
    return digest.hexdigest()


def uses_code(task: Task) -> bool:
    """Return whether a task has functions, or is a class of its own: YAML and rows do not say all of it."""
    return type(task) is not ConfigurableTask or _has_function(asdict(task.config))


def code_versions() -> dict[str, str]:
    """Return the versions of lm-eval, with its commit where it comes from a repository, and of what tasks score with.

    Changes of a working copy that are not committed are not seen.
    """
    versions: dict[str, str] = {}
    for name in ("lm-eval", *SCORING_PACKAGES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    origin = importlib.metadata.distribution("lm-eval").read_text("direct_url.json")
    if origin and (commit := _commit(json.loads(origin))):
        versions["lm-eval commit"] = commit
    return versions


def _commit(origin: Mapping[str, Any]) -> str | None:
    """Return the commit of a package that was installed from a repository or from a folder (PEP 610)."""
    if "vcs_info" in origin:
        return str(origin["vcs_info"]["commit_id"])
    if origin.get("dir_info", {}).get("editable"):
        return get_commit_from_path(url2pathname(urlsplit(origin["url"]).path))
    return None


def _has_function(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_function, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_function, value))
    return callable(value)


def _definition(task: Task) -> dict[str, Any]:
    """Return a task's configuration without the paths of its files, whose content counts instead."""
    config = asdict(task.config)
    config["metadata"] = _without(config["metadata"], "config_source")
    config["dataset_kwargs"] = _without(config["dataset_kwargs"], "data_files", "data_dir")
    for part in (config, config["fewshot_config"] or {}):
        # The one mapping whose order counts: an answer is known by its place in it.
        if isinstance(choices := part.get("doc_to_choice"), Mapping):
            part["doc_to_choice"] = list(choices.items())
    return {"class": type(task), "version": task.VERSION, "config": config}


def _without(mapping: Mapping[str, Any] | None, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in (mapping or {}).items() if key not in keys}


def _json(value: Any) -> bytes:
    """Return ``value`` as JSON that is the same in every process."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(value, default=_plain, option=options)


def _plain(value: Any) -> Any:
    """Return what JSON does not know as what it knows; it comes back here for the parts."""
    if isinstance(value, functools.partial):
        return {"function": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, type) or inspect.isroutine(value):
        # A cache around a function is no function itself.
        return _code(inspect.unwrap(value, stop=inspect.isfunction))
    return {"class": type(value), "value": Hasher.hash(value)}


def _code(value: Callable[..., Any]) -> dict[str, Any]:
    """Return the name of a function or class, the Python files around it, and the variables that it closes over."""
    try:
        folder = Path(inspect.getfile(value)).parent
    except TypeError:  # compiled; there is no file, and the name says it all
        return {"name": value.__qualname__}
    enclosed = inspect.getclosurevars(value).nonlocals if inspect.isfunction(value) else {}
    return {
        "name": value.__qualname__,
        "files": {path.name: sha256_of_file(path) for path in folder.glob("*.py")},
        # A function that calls itself closes over itself.
        "enclosed": {name: one for name, one in enclosed.items() if one is not value},
    }


def _documents(task: Task) -> Iterator[tuple[str, Iterable[Any]]]:
    """Yield the rows that a task asks and shows, as its own functions made them."""
    yield "documents", task.eval_docs
    if task.get_config("num_fewshot"):
        yield "examples", task.fewshot_docs() or ()


def _row_bytes(rows: Iterable[Any]) -> Iterator[bytes | pa.Buffer]:
    """Yield bytes that are the same for the same rows, however they are stored."""
    if not isinstance(rows, datasets.Dataset):
        yield from map(_json, rows)
        return
    yield _json(rows.features.to_dict())
    for table in rows.with_format("arrow").iter(ROWS_PER_BATCH):
        # Taking every row copies them into arrays without offsets, spare bits or chunks.
        packed = table.take(pa.array(range(table.num_rows))).combine_chunks()
        yield from (batch.serialize() for batch in packed.to_batches())
