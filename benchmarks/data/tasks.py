"""One task of ``benchmarks/data/`` in a process of its own.

``python -m benchmarks.data.tasks TASK SOURCE FOLDER TOKENIZER``, where :mod:`benchmarks.data.worker` starts it.

What the task imports is imported before the clock starts; what it does then, starting worker processes and loading the
tokenizer included, is timed. ``FOLDER`` receives what the task writes, and what was measured in ``measured.json``.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson

from benchmarks.data.worker import MEASURED_NAME, Timing, peak_bytes_of_this_process
from osft.logs import configure_logging
from osft.workspace import write_json

# As long as any row can become, so that none is dropped.
MAX_SEQ_LEN = 4_096
ENCODE_BATCH_ROWS = 1_000


def main() -> None:
    """Do the task that the command line names."""
    configure_logging()
    task, source, folder, tokenizer = sys.argv[1:]
    timing = TASKS[task](source, Path(folder), Path(tokenizer))
    write_json(Path(folder) / MEASURED_NAME, timing)


def parse(source: str, folder: Path, tokenizer: Path) -> Timing:
    """Parse every line and keep nothing: what validation cannot be faster than in one process."""
    del folder, tokenizer
    start = time.perf_counter()
    rows = 0
    with Path(source).open("rb") as lines:
        for line in lines:
            orjson.loads(line)
            rows += 1
    return _stop(rows, start)


def validate(source: str, folder: Path, tokenizer: Path) -> Timing:
    """Validate the rows."""
    from osft.data.validation.validate import validate_dataset

    del tokenizer
    start = time.perf_counter()
    report = validate_dataset(Path(source), folder / "output")
    return _stop(report.rows_valid, start)


def encode(source: str, folder: Path, tokenizer: Path) -> Timing:
    """Tokenize texts that are rendered already, which lie in memory, and drop the tokens."""
    # The library's threads read it when they start.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from tokenizers import Tokenizer

    del folder
    core = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [orjson.loads(line) for line in Path(source).read_bytes().splitlines()]
    start = time.perf_counter()
    rows = 0
    for first in range(0, len(texts), ENCODE_BATCH_ROWS):
        rows += len(core.encode_batch(texts[first : first + ENCODE_BATCH_ROWS], add_special_tokens=False))
    return _stop(rows, start)


def process(source: str, folder: Path, tokenizer: Path) -> Timing:
    """Tokenize the rows, then ask for them once more, in another folder."""
    # Brings torch, which takes longer than the import of all else; load_tokenizer asks for it late.
    from transformers import AutoTokenizer  # noqa: F401

    from osft.content_cache import ContentCache
    from osft.data.processing.process import process_dataset
    from osft.data.processing.report import ProcessingConfig

    config = ProcessingConfig(model=str(tokenizer), max_seq_len=MAX_SEQ_LEN)
    cache = ContentCache(folder / "cache")
    start = time.perf_counter()
    report = process_dataset(Path(source), folder / "output", config, cache=cache)
    timing = _stop(report.rows_train + report.rows_holdout, start)
    return _ask_again(timing, lambda: process_dataset(Path(source), folder / "again", config, cache=cache))


def download(source: str, folder: Path, tokenizer: Path) -> Timing:
    """Download the rows, then ask for them once more."""
    from osft.data.download.download import download_dataset

    del tokenizer
    start = time.perf_counter()
    report = download_dataset(source, folder / "output")
    timing = replace(_stop(report.rows, start), size_bytes=report.size_bytes)
    return _ask_again(timing, lambda: download_dataset(source, folder / "output"))


TASKS: dict[str, Callable[[str, Path, Path], Timing]] = {
    "parse": parse,
    "validate": validate,
    "encode": encode,
    "process": process,
    "download": download,
}


def _stop(rows: int, start: float) -> Timing:
    """Return what was measured of the task that began at ``start``."""
    return Timing(rows=rows, seconds=time.perf_counter() - start, main_peak_bytes=peak_bytes_of_this_process())


def _ask_again(timing: Timing, work: Callable[[], object]) -> Timing:
    start = time.perf_counter()
    work()
    return replace(timing, again_seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
