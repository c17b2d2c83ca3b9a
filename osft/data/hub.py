"""The training split of a dataset on the Hugging Face Hub, through ``datasets``.

The revision is first turned into a commit, so that what is loaded is what ``source.json`` names. The endpoint and the
token are those of the environment (``HF_ENDPOINT``, ``HF_TOKEN``). Code that comes with a dataset is never run.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from osft.data.fetching import FileOrigin, is_transient_status, with_retries
from osft.data.formats import BATCH_ROWS, RowSink, write_rows
from osft.errors import ConfigError, DownloadError

logger = logging.getLogger(__name__)

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

    def copy_rows(self, sink: RowSink, scratch: Path) -> tuple[FileOrigin, ...]:
        """Load the training split and append its rows.

        Raises:
            ConfigError: if a local folder has the dataset's name.
            DownloadError: if the hub does not give the dataset.
            DataError: if a value has no JSON form.
        """
        if Path(self.name).exists():
            # load_dataset would take the folder, whatever the hub has under that name.
            raise ConfigError(f"{self.uri}: a local '{self.name}' hides the hub's dataset. Run from another folder.")
        try:
            commit = with_retries(self._resolve_commit, _is_transient, self.uri)
            dataset = with_retries(lambda: self._load(commit), _is_transient, self.uri)
        except HfHubHTTPError as error:
            raise DownloadError(
                f"{self.uri}: the hub answers {error.response.status_code}. Check the name and the revision; "
                "for a private or gated dataset set HF_TOKEN."
            ) from error
        except (DatasetsError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise DownloadError(
                f"{self.uri}: the dataset cannot be loaded ({reason}). Check its name, its configuration and that it "
                f"has a split '{SPLIT}'."
            ) from error
        write_rows(_rows(dataset), self.uri, sink)
        return (FileOrigin(name=self.name, revision=commit),)

    def _resolve_commit(self) -> str | None:
        """Return the commit that the revision stands for; ``None`` when offline, where the cache decides."""
        try:
            return HfApi().dataset_info(self.name, revision=self.revision).sha
        except OfflineModeIsEnabled:
            logger.warning("%s: the hub is switched off (HF_HUB_OFFLINE); what is in the cache is taken", self.uri)
            return None

    def _load(self, commit: str | None) -> Dataset:
        return load_dataset(self.name, self.config, split=SPLIT, revision=commit or self.revision)


def _rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    # As Arrow has them: decoding would turn media into objects that no JSON has.
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield from table.to_pylist()


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and is_transient_status(error.response.status_code)
    return isinstance(error, ConnectionError | TimeoutError)
