"""The token ids that a run trains on: given as such, or made from raw rows by the first process, once for all."""

import hashlib
import logging
import time
from pathlib import Path

from osft.config import TrainingConfig
from osft.data.files import TRAIN_NAME, VALID_NAME
from osft.data.processing.process import process_dataset
from osft.data.processing.report import ProcessingConfig
from osft.data.validation.validate import validate_dataset
from osft.errors import MissingPathError
from osft.processes.group import Processes
from osft.processes.watch import HangWatch

logger = logging.getLogger(__name__)

# A client of a network volume may show a folder as it was, NFS up to this long.
VISIBLE_SECONDS = 60.0
LOOK_SECONDS = 0.5
# The end of a parquet file tells its sizes, offsets and statistics.
MARK_BYTES = 1 << 20


def ready_train_data(config: TrainingConfig, processes: Processes, watch: HangWatch) -> Path:
    """Return the file of token ids to train on; every process must call this.

    Raises:
        DataError: if a row is not what its format says.
        MissingPathError: if this process does not see what the first one wrote.
    """
    if config.use_processed_dataset:
        return Path(config.data_path)
    path = config.data_directory / TRAIN_NAME
    mark = watch.first_does(lambda: mark_of(_tokenize(config)), "preparing the data")
    if not processes.is_first:
        wait_until_visible(path, mark, processes.global_rank)
    return path


def wait_until_visible(path: Path, mark: str, global_rank: int, seconds: float = VISIBLE_SECONDS) -> None:
    """Wait until this node sees the file that the first process has written.

    Args:
        path: the file.
        mark: :func:`mark_of` it, by the first process.
        global_rank: of this process.
        seconds: how long to wait.

    Raises:
        MissingPathError: if it does not come, or stays another one, such as an earlier run's on a disk of this node.
    """
    deadline = time.monotonic() + seconds
    while not path.is_file() or mark_of(path) != mark:
        if time.monotonic() > deadline:
            raise MissingPathError(
                f"{path}: what rank 0 wrote there is not on the node of rank {global_rank}. Give a data_output_dir, "
                "or ckpt_output_dir, that all nodes share."
            )
        time.sleep(LOOK_SECONDS)


def _tokenize(config: TrainingConfig) -> Path:
    """Validate and tokenize the raw data; return the file of token ids."""
    directory = config.data_directory
    validate_dataset(
        Path(config.data_path),
        directory,
        data_format=config.data_format,
        document_column=config.document_column_name,
        unmask_messages=config.unmask_messages,
    )
    processing = ProcessingConfig(
        model=config.model_path,
        data_format=config.data_format,
        max_seq_len=config.max_seq_len,
        unmask_messages=config.unmask_messages,
        holdout_fraction=0.0,
        seed=config.seed,
        block_size=config.block_size,
        document_column=config.document_column_name,
    )
    process_dataset(directory / VALID_NAME, directory, processing)
    return directory / TRAIN_NAME


def mark_of(path: Path) -> str:
    """Return what tells the file from one of an earlier run: its size and a hash of its end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - MARK_BYTES))
        return f"{size} {hashlib.sha256(file.read()).hexdigest()}"
