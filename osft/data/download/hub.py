"""The training split of a dataset on the Hugging Face Hub, through ``datasets``.

The revision is first turned into a commit, so that what is loaded is what ``source.json`` names. The endpoint and the
token are those of the environment (``HF_ENDPOINT``, ``HF_TOKEN``). Code that comes with a dataset is never run.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.constants import ENDPOINT

# HTTPError is the client library's own: which library that is depends on the version of huggingface_hub.
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from osft.data.download.fetching import DownloadInterruptedError, FileOrigin, is_transient_status, with_retries
from osft.data.download.formats import write_rows
from osft.data.download.row_sink import RowSink
from osft.data.download.tables import PIECE_ROWS, python_rows
from osft.errors import ConfigError, DownloadError, one_line

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
SPLIT = "train"
HUB_URI = re.compile(
    r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@:/\s]+))?(?:@(?P<revision>[^@:\s]+))?", re.ASCII
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSource:
    """A dataset by name, configuration and revision."""

    uri: str
    name: str
    config: str | None
    revision: str | None

    @classmethod
    def parse(cls, uri: str) -> "HubSource":
        """Read ``hf://name[:config][@revision]``.

        Raises:
            ConfigError: if ``uri`` has another form.
        """
        match = HUB_URI.fullmatch(uri)
        if match is None:
            raise ConfigError(f"'{uri}' is no dataset of a hub; allowed is hf://name[:config][@revision].")
        return cls(uri=uri, **match.groupdict())

    @property
    def identity(self) -> str:
        """The URI, and the hub that it is looked up at."""
        return f"{ENDPOINT} {self.uri}"

    def is_unchanged(self, files: Sequence[FileOrigin]) -> bool:
        """Return whether the revision still stands for the commit that was loaded.

        Raises:
            DownloadError: if the hub does not say.
        """
        commit = with_retries(lambda: self._ask(self._resolve_commit))
        return commit is not None and [file.revision for file in files] == [commit]

    def copy_rows(self, sink: RowSink, folder: Path) -> tuple[FileOrigin, ...]:
        """Load the training split and append its rows; ``datasets`` keeps files in a cache of its own.

        Raises:
            ConfigError: if a local folder has the dataset's name.
            DownloadError: if the hub does not give the dataset.
            DataError: if a value has no JSON form.
        """
        del folder
        if Path(self.name).exists():
            # load_dataset would take the folder, whatever the hub has under that name.
            raise ConfigError(f"{self.uri}: a local '{self.name}' hides the hub's dataset. Run from another folder.")
        commit = with_retries(lambda: self._ask(self._resolve_commit))
        dataset = with_retries(lambda: self._ask(lambda: self._load(commit)))
        first_line = sink.lines + 1
        write_rows(python_rows(_batches(dataset), self.uri), self.uri, sink)
        lines = sink.lines + 1 - first_line
        return (FileOrigin(name=self.name, revision=commit, first_line=first_line, lines=lines),)

    def _ask(self, request: Callable[[], Result]) -> Result:
        """Try a request once.

        Raises:
            DownloadInterruptedError: if asking again may mend it.
            DownloadError: if not.
        """
        try:
            return request()
        except HfHubHTTPError as error:
            status = error.response.status_code
            kind = DownloadInterruptedError if is_transient_status(status) else DownloadError
            raise kind(
                f"{self.uri}: the hub answers {status}. Check the name and the revision; "
                "for a private or gated dataset set HF_TOKEN."
            ) from error
        except (HTTPError, ConnectionError, TimeoutError) as error:
            raise DownloadInterruptedError(
                f"{self.uri}: the hub cannot be reached ({one_line(error)}). Check the network and HF_ENDPOINT."
            ) from error
        except (DatasetsError, ValueError, OSError) as error:
            raise DownloadError(
                f"{self.uri}: the dataset cannot be loaded ({one_line(error)}). Check its name, its configuration and "
                f"that it has a split '{SPLIT}'."
            ) from error

    def _resolve_commit(self) -> str | None:
        """Return the commit that the revision stands for; ``None`` when offline, where the cache decides."""
        try:
            return HfApi().dataset_info(self.name, revision=self.revision).sha
        except OfflineModeIsEnabled:
            logger.warning("%s: the hub is switched off (HF_HUB_OFFLINE); what is in the cache is taken", self.uri)
            return None

    def _load(self, commit: str | None) -> Dataset:
        return load_dataset(self.name, self.config, split=SPLIT, revision=commit or self.revision)


def _batches(dataset: Dataset) -> Iterator[pa.RecordBatch]:
    # As Arrow has them: decoding would turn media into objects that no JSON has.
    for table in dataset.with_format("arrow").iter(batch_size=PIECE_ROWS):
        yield from table.to_batches()
