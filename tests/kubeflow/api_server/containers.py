"""The container of a pod: a process on this machine, what it sees of the volumes, and its log.

A container has no file system of its own here. Paths in its command and environment are translated instead: a mount
path becomes the folder where the claim really lies, and the folder of a claim that is not mounted becomes an empty one,
so that a pod without its volume does not find the workspace.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Object = dict[str, Any]
PROJECT = Path(__file__).parents[3]
VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
# What every image has, and what keeps processes on a loaded machine from waiting for each other.
IMAGE_ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(PROJECT),
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}
PROGRAMS = {
    "python": [sys.executable],
    "python3": [sys.executable],
    # The scripts of a virtual environment name their interpreter by its full path, which may have a space.
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}
# An image whose python is a stand-in: it runs the shell commands of the variable SCRIPT, whatever it is asked to run.
SHELL_IMAGE = "example/shell:1"
SHELL_PROGRAMS = {"python": ["bash", "-c", 'eval "$SCRIPT"', "python"]}
START_FAILED = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """What a container sees of the claims: its mount paths, and where they lead."""

    paths: Mapping[str, str]

    @classmethod
    def of(cls, spec: Object, claims: Mapping[str, Path], root: Path) -> "Sight":
        """Read the mounts of the pod's only container; ``root`` is what else it may write."""
        (container,) = spec["containers"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        paths = {str(folder): f"{root}{folder}" for folder in claims.values()}
        for mount in container.get("volumeMounts", []):
            claim = volumes[mount["name"]].get("persistentVolumeClaim")
            place = claims[claim["claimName"]] if claim else Path(f"{root}{mount['mountPath']}")
            paths[mount["mountPath"].rstrip("/")] = str(place / mount.get("subPath", "")).rstrip("/")
        return cls(paths=paths)

    def translate(self, text: str) -> str:
        """Return ``text`` with each path as it lies on this machine."""
        longest_first = sorted(self.paths, key=len, reverse=True)
        pattern = rf"(?<![\w.-])({'|'.join(map(re.escape, longest_first))})(?![\w.-])"
        return re.sub(pattern, lambda match: self.paths[match[0]], text) if self.paths else text


@dataclass(kw_only=True)
class Log:
    """The lines of one run of a container, as the kubelet keeps them: each with its time."""

    lines: list[tuple[datetime, bytes]] = field(default_factory=list)
    closed: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def write(self, line: bytes) -> None:
        """Append a line; its end belongs to it, if it has one."""
        with self.changed:
            self.lines.append((datetime.now(UTC), line))
            self.changed.notify_all()

    def close(self) -> None:
        """Say that nothing more comes."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def read(
        self, *, since: datetime | None, tail: int | None, timestamps: bool, follow: Callable[[], bool]
    ) -> Iterator[bytes]:
        """Yield the lines, and while ``follow`` says so those that come."""
        first = 0 if tail is None else max(0, len(self.lines) - tail)
        while True:
            with self.changed:
                news, done = self.lines[first:], self.closed
                if not news and not done and follow():
                    self.changed.wait(0.2)
            first += len(news)
            for time, line in news:
                if since is None or time >= since:
                    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.%f000Z ").encode() if timestamps else b""
                    yield stamp + line
            if not news and (done or not follow()):
                return


class Container:
    """One run of a container."""

    def __init__(self, container: Object, environment: Mapping[str, str], sight: Sight, folder: Path) -> None:
        expand = {name: VARIABLE.sub(lambda match: environment.get(match[1], match[0]), value)
                  for name, value in environment.items()}  # fmt: skip
        words = [*container.get("command", []), *container.get("args", [])]
        words = [VARIABLE.sub(lambda match: expand.get(match[1], match[0]), word) for word in words]
        words = [sight.translate(word) for word in words]
        programs = SHELL_PROGRAMS if container["image"] == SHELL_IMAGE else PROGRAMS
        self.command = [*programs.get(words[0], [words[0]]), *words[1:]]
        self.environment = {**IMAGE_ENVIRONMENT, "HOME": str(folder), "TMPDIR": str(folder)}
        self.environment |= {name: sight.translate(value) for name, value in expand.items()}
        self.folder = folder
        self.log = Log()
        self.killed_for_memory = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str | None:
        """Start the process; return why it cannot be started, if so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._process = subprocess.Popen(
                self.command, env=self.environment, cwd=self.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            self.log.close()
            return f'exec: "{self.command[0]}": {error.strerror}'
        threading.Thread(target=self._keep_log, args=(self._process,), daemon=True).start()
        return None

    def wait(self) -> int:
        """Return the exit code as Kubernetes counts it: 128 and the signal's number, if a signal ended it."""
        if self._process is None:
            return START_FAILED
        code = self._process.wait()
        # A container ends with its first process; what that has left behind goes with it.
        self._signal(signal.SIGKILL)
        return code if code >= 0 else 128 - code

    def stop(self, grace_seconds: float) -> None:
        """Ask the first process to end, and kill them all after ``grace_seconds``."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)

    def exhaust_memory(self) -> None:
        """End the process as the kernel does when the container is out of memory."""
        self.killed_for_memory = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            # Nobody is left.
            return

    def _keep_log(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.log.write(line)
        self.log.close()
