"""What goes wrong on request: in the answers of the server, and with the pods."""

import threading
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from tests.kubeflow.api_server.errors import ApiError

REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    409: "Conflict",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class Obstacle(Enum):
    """What keeps a job's pods from starting."""

    NO_GPU = auto()
    UNBOUND_CLAIM = auto()
    IMAGE = auto()
    QUOTA = auto()
    KUEUE = auto()


@dataclass(kw_only=True)
class Rule:
    """Requests whose verb and path match are answered with an error, a number of times."""

    code: int
    times: int
    verb: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Faults:
    """The faults of one server; each is consumed as it happens."""

    obstacle: Obstacle | None = None
    watch_lines: list[int] = field(default_factory=list)
    """The next watches hang up after so many events."""
    log_bytes: list[int] = field(default_factory=list)
    """The next answers with a log hang up after so many bytes."""
    handshakes: list[int] = field(default_factory=list)
    """The next connections hang up in the TLS handshake, after so many bytes of what the client says."""
    delay_seconds: float = 0.0
    """Every answer waits so long."""
    without_right: set[str] = field(default_factory=set)
    """Resources that no Role lets anyone read."""
    rules: list[Rule] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)
    """What was done, in order."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(
        self, code: int, times: int = 1, *, verb: str = "", path: str = "", retry_after: int | None = None
    ) -> None:
        """Answer the next ``times`` requests of this kind with ``code``."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.rules.append(Rule(code=code, times=times, verb=verb, path=path, headers=headers))

    def check(self, verb: str, path: str) -> None:
        """Raise the error that this request is to be answered with, if any."""
        with self._lock:
            rule = next((one for one in self.rules if one.times and one.verb in verb and one.path in path), None)
            if rule is None:
                return
            rule.times -= 1
            self.happened.append(f"{rule.code} {verb}")
        error = ApiError(rule.code, REASONS[rule.code], f"fault: {REASONS[rule.code]}")
        error.status["details"] = {"retryAfterSeconds": int(rule.headers.get("Retry-After", 0))}
        error.headers = rule.headers
        raise error

    def next_of(self, what: str) -> int | None:
        """Take the next limit of ``watch_lines``, ``log_bytes`` or ``handshakes``."""
        with self._lock:
            limits: list[int] = getattr(self, what)
            return limits.pop(0) if limits else None

    def note(self, what: str) -> None:
        """Write down that a fault happened."""
        with self._lock:
            self.happened.append(what)

    def remaining(self) -> list[Any]:
        """Return the faults that have not happened yet."""
        return [*self.watch_lines, *self.log_bytes, *self.handshakes, *(rule for rule in self.rules if rule.times)]
