"""The layout of the shared volume, atomic writes, and the manifests that steps hand to each other.

Heavy bytes stay on the volume; what travels from step to step is a :class:`Manifest`, a small JSON file
that names a folder relative to the workspace and lists its files with size and sha256. A folder appears
under its final name only when it is whole, so a killed step leaves nothing that looks finished.

    <workspace>/cache/                      safe to delete
    <workspace>/runs/<run_id>/<step>/       one folder a step, each with manifest.json
    <workspace>/models/<name>/v0001/        promoted models
"""

import hashlib
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from osft.errors import MissingPathError, WorkspaceError

logger = logging.getLogger(__name__)

WORKSPACE_VARIABLE = "OSFT_WORKSPACE"
DEFAULT_WORKSPACE_PATH = "/workspace"
PVC_SCHEME = "pvc://"
MANIFEST_SCHEMA = "osft.manifest/v1"
MANIFEST_NAME = "manifest.json"
HASH_CHUNK_BYTES = 1 << 20
# A run's id becomes a folder name, so it must not be able to name another folder.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and rename it there once the block ends without an error.

    The bytes are on disk before the name appears; after an error neither the name nor the temporary file exists.

    Args:
        path: the file to write; its parent is created.
        mode: ``"wb"`` or ``"w"`` (UTF-8).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    # mkstemp makes files private; a pod under another user id of the same group must read them.
    Path(temporary).chmod(0o664)
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON (numpy scalars and dataclasses included), atomically."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    with atomic_file(path) as file:
        file.write(orjson.dumps(value, option=options))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file."""
    return orjson.loads(path.read_bytes())


def as_json(value: Any) -> Any:
    """Return a dataclass, its paths included, as the plain values that a JSON file of it would give back."""
    return orjson.loads(orjson.dumps(value, default=str))


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_directory(source: Path, target: Path) -> None:
    """Move the finished folder ``source`` to ``target``, replacing what is there.

    Both lie in the same parent. A folder cannot be renamed over another one, so an older ``target`` is first
    renamed aside and removed last: at no moment does ``target`` name a half-written folder.
    """
    if target.exists():
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
        target.replace(aside / target.name)
        source.replace(target)
        shutil.rmtree(aside)
    else:
        source.replace(target)
    sync_directory(target.parent)


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestFile:
    """One file of a finished folder."""

    name: str
    """Path relative to the folder, with forward slashes."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What one step left on the workspace, and from what it made it."""

    path: str
    """The folder, relative to the workspace, with forward slashes."""

    files: tuple[ManifestFile, ...]

    inputs: Mapping[str, Any]
    """What determined the files: parameters, and for each input manifest its :attr:`fingerprint`."""

    schema: str = MANIFEST_SCHEMA

    @property
    def fingerprint(self) -> str:
        """One sha256 over the names and contents of the files: equal fingerprints mean equal files."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name}\0{file.sha256}\n".encode())
        return digest.hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the manifest as JSON to ``path``, atomically."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: Path | str) -> "Manifest":
        """Read a manifest.

        Raises:
            WorkspaceError: if there is no manifest of this schema at ``path``.
        """
        try:
            fields = read_json(Path(path))
            files = tuple(ManifestFile(**file) for file in fields.pop("files"))
            manifest = cls(files=files, **fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorkspaceError(
                f"{path}: no {MANIFEST_SCHEMA} manifest ({error}). Run the step before again."
            ) from error
        if manifest.schema != MANIFEST_SCHEMA:
            raise WorkspaceError(
                f"{path}: the manifest has schema '{manifest.schema}', not {MANIFEST_SCHEMA}. "
                "Compile and run the pipeline with one version of osft."
            )
        return manifest


@dataclass(frozen=True, slots=True)
class Workspace:
    """A folder, on a cluster the mounted volume, that every step of a run sees at the same path."""

    root: Path

    @classmethod
    def from_environment(cls) -> "Workspace":
        """Return the workspace that ``OSFT_WORKSPACE`` names, ``/workspace`` if it is not set.

        Raises:
            MissingPathError: if that folder does not exist.
        """
        root = Path(os.environ.get(WORKSPACE_VARIABLE, DEFAULT_WORKSPACE_PATH))
        if not root.is_dir():
            raise MissingPathError(
                f"{root}: the workspace does not exist. Mount the volume there or set {WORKSPACE_VARIABLE} to a folder."
            )
        return cls(root.resolve())

    @property
    def models(self) -> Path:
        """Folder of the promoted models."""
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        """Where downloaded rows are kept from run to run."""
        return self.root / "cache" / "datasets"

    @property
    def processed(self) -> Path:
        """Where tokenized rows are kept from run to run."""
        return self.root / "cache" / "processed"

    @property
    def decompositions(self) -> Path:
        """Where decompositions of weights are kept from run to run."""
        return self.root / "cache" / "subspaces"

    @property
    def evaluations(self) -> Path:
        """Where results of evaluated models are kept from run to run."""
        return self.root / "cache" / "evaluations"

    def run_directory(self, run_id: str) -> Path:
        """Return the folder of one pipeline run.

        Raises:
            WorkspaceError: if ``run_id`` cannot be a folder name.
        """
        return self.root / "runs" / safe_name(run_id, what="run id")

    def resolve(self, relative: str) -> Path:
        """Return the absolute path of ``relative``, which must stay inside the workspace, links followed.

        Raises:
            WorkspaceError: if it is absolute or leaves the workspace.
            MissingPathError: if nothing is there.
        """
        path = (self.root / relative).resolve()
        if Path(relative).is_absolute() or not path.is_relative_to(self.root.resolve()):
            raise WorkspaceError(
                f"'{relative}' leaves the workspace {self.root}. Give a path relative to it, without '..'."
            )
        if not path.exists():
            raise MissingPathError(f"'{relative}' does not exist in the workspace {self.root}.")
        return path

    def locate(self, reference: str) -> str:
        """Return ``pvc://relative/path`` as an absolute path inside the workspace, anything else as it is."""
        relative = reference.removeprefix(PVC_SCHEME)
        return reference if relative == reference else str(self.resolve(relative))

    def directory_of(self, manifest: Path | str) -> Path:
        """Return the folder that a manifest file points to."""
        return self.resolve(Manifest.load(manifest).path)

    def complete(
        self,
        run_id: str,
        step: str,
        *,
        inputs: Mapping[str, Any],
        work: Callable[[Path], object],
        resumable: bool = False,
    ) -> Manifest:
        """Return the manifest of ``runs/<run_id>/<step>``, after doing the work unless it is already done.

        ``work`` fills an empty folder that is renamed to its final name once it is whole. Until then it is called
        ``<step>.<host>.partial``: a pod that is retried while its lost predecessor still writes has a folder of
        its own. A finished step with the same ``inputs`` is not done again.

        Args:
            run_id: id of the pipeline run.
            step: name of the folder inside the run.
            inputs: everything that determines the outcome; must be JSON. Paths of manifests are given as
                their fingerprints.
            work: called with the folder to fill.
            resumable: the work goes on from what an earlier, killed try left: the folder is ``<step>.partial``, the
                same for every try, and need not be empty.
        """
        target = self.run_directory(run_id) / step
        if finished := finished_manifest(target, inputs):
            logger.info("%s is finished already with the same inputs; nothing to do", finished.path)
            return finished
        partial = target.with_name(f"{step}.partial" if resumable else f"{step}.{socket.gethostname()}.partial")
        if partial.exists() and not resumable:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=resumable)
        work(partial)
        if finished := finished_manifest(target, inputs):
            logger.warning("%s was finished meanwhile by another process; this one's files are dropped", finished.path)
            shutil.rmtree(partial)
            return finished
        manifest = Manifest(
            path=target.relative_to(self.root).as_posix(), files=describe_files(partial), inputs=as_json(dict(inputs))
        )
        manifest.save(partial / MANIFEST_NAME)
        replace_directory(partial, target)
        return manifest


def safe_name(name: str, *, what: str) -> str:
    """Return ``name`` if it can be a folder name.

    Raises:
        WorkspaceError: if it is empty, longer than 128 characters, or has others than letters, digits, ``._-``.
    """
    if not SAFE_NAME.fullmatch(name):
        raise WorkspaceError(
            f"{what} '{name}' cannot be a folder name. Use letters, digits, '.', '_' and '-', a letter or digit first."
        )
    return name


def finished_manifest(directory: Path, inputs: Mapping[str, Any]) -> Manifest | None:
    """Return the manifest in ``directory`` if it was made from ``inputs`` and its files still have their sizes.

    The sizes, not the hashes: a model's hash takes minutes. Who copies files on checks them.
    """
    try:
        manifest = Manifest.load(directory / MANIFEST_NAME)
    except WorkspaceError:
        # Nothing finished is there; the step is done again and replaces what is.
        return None
    same_inputs = manifest.inputs == as_json(dict(inputs))
    files_are_there = all(has_size(directory / file.name, file.size_bytes) for file in manifest.files)
    return manifest if same_inputs and files_are_there else None


def has_size(path: Path, size_bytes: int) -> bool:
    """Return whether ``path`` is a file of ``size_bytes``."""
    return path.is_file() and path.stat().st_size == size_bytes


def describe_files(directory: Path) -> tuple[ManifestFile, ...]:
    """Return every file below ``directory``, its own manifest excepted, in the order of names."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST_NAME)
    return tuple(
        ManifestFile(
            name=path.relative_to(directory).as_posix(), size_bytes=path.stat().st_size, sha256=sha256_of_file(path)
        )
        for path in paths
    )
