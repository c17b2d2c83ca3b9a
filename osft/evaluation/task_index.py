"""Which names lm-eval's own tasks, groups and tags have, kept in a file.

lm-eval 0.4.13 finds this out by parsing its 14,000 YAML files, which takes longer than all else that an evaluation
does with results that are kept: 12 seconds, against a quarter of a second for the file. A package does not change, so
the file is good for as long as the version of lm-eval is the same.
"""

import importlib.metadata
import logging
from pathlib import Path

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import Entry, Kind

from osft.errors import one_line
from osft.workspace import read_json, write_json

logger = logging.getLogger(__name__)

CACHE_NAME = "task-index"


def own_tasks(cache: Path | None) -> dict[str, Entry]:
    """Return the index of lm-eval's own tasks, from the cache where it is kept.

    Args:
        cache: folder below which it is kept; None builds it anew. One that cannot be written is a warning.
    """
    file = cache / CACHE_NAME / f"lm-eval-{importlib.metadata.version('lm-eval')}.json" if cache else None
    if file and (kept := _read(file)):
        return kept
    logger.info("reading lm-eval's index of tasks")
    index = TaskManager().task_index
    if file:
        _write(index, file)
    return index


def _read(file: Path) -> dict[str, Entry] | None:
    root = Path(lm_eval.tasks.__file__).parent
    try:
        return {
            name: Entry(name=name, kind=Kind[kind], yaml_path=root / path if path else None, tags=set(tags))
            for name, (kind, path, tags) in read_json(file).items()
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: no index of tasks (%s); it is built again", file, one_line(error))
        return None


def _write(index: dict[str, Entry], file: Path) -> None:
    root = Path(lm_eval.tasks.__file__).parent
    rows = {
        name: (entry.kind.name, str(entry.yaml_path.relative_to(root)) if entry.yaml_path else None, sorted(entry.tags))
        for name, entry in index.items()
    }
    try:
        write_json(file, rows)
    except OSError as error:
        logger.warning("%s: the index of tasks cannot be kept (%s)", file, one_line(error))
