"""The errors that this library raises on purpose.

A caller catches :class:`OsftError` for all of them, or the built-in type that the public contract of
``osft()`` names: ``ValueError`` for a bad value, ``FileNotFoundError`` for a missing path,
``RuntimeError`` for work that failed. A message is one line: the input, the place, the mend.
"""


class OsftError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigError(OsftError, ValueError):
    """A parameter has a value that is not allowed."""


class DataError(OsftError, ValueError):
    """A row or a file of data is not what its format says."""


class MissingPathError(OsftError, FileNotFoundError):
    """A file or folder that the caller named does not exist."""


class WorkspaceError(OsftError, RuntimeError):
    """The shared volume cannot be used as asked: a path leaves it, or a manifest does not hold."""


class DownloadError(OsftError, RuntimeError):
    """A source could not be fetched."""


class TrainingError(OsftError, RuntimeError):
    """A training run failed, or its backend is not available."""


class PreemptedError(TrainingError):
    """A training run was asked to stop and did; the same call goes on from what it saved."""


class ClusterError(OsftError, RuntimeError):
    """Kubernetes refused a request, or could not be reached."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        """Keep the HTTP status; ``None`` if there was no answer."""
        super().__init__(message)
        self.status = status


class EvaluationError(OsftError, RuntimeError):
    """An evaluation failed."""


def one_line(error: BaseException, *, max_length: int = 300) -> str:
    """Return what another library's error says, fit to be a part of a line of ours."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= max_length else text[:max_length] + "…"
