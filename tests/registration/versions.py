"""Promoted versions to register, and a registration without waits between tries."""

import math
from pathlib import Path
from typing import Any

from tenacity import wait_none

from osft.registration.connection import Connection
from osft.registration.register import Registration, register_version
from osft.registration.registry import Patience
from osft.workspace import Workspace
from tests.registration.server import RegistryServer
from tests.versions.chains import make_lineage, make_score, write_chain

LOCATION = "pvc://osft-workspace"
AT_ONCE = Patience(tries=3, wait=wait_none())


def judged(number: int) -> dict[str, Any]:
    """Return what the evaluation of version ``number`` found, as far as it is registered."""
    found = {
        "forgetting": 0.012, "forgetting_upper": 0.031, "target_gain": 0.93, "backward_transfer": math.nan,
        "average_accuracy_tuned": 0.9, "cumulative_forgetting": None, "passed": True,
        "tasks": [{"kind": "retention", "loss_upper": 0.031}],
    }  # fmt: skip
    later = {"cumulative_forgetting": 0.039, "cumulative_forgetting_upper": 0.06, "origin_forgetting": 0.024}
    return found | (later if number > 1 else {})


def publish(root: Path, *, versions: int = 3, model_name: str = "demo") -> Workspace:
    """Publish a chain of so many versions."""
    root.mkdir()
    workspace = Workspace(root)
    chain = [
        make_lineage(
            number,
            [
                make_score("arc_easy", 0.7),
                make_score(f"holdout_v{number:04d}", 0.98, before=0.0, kind="target"),
            ],
            evaluation=judged(number),
            model_name=model_name,
        )
        for number in range(1, versions + 1)
    ]
    write_chain(workspace, chain)
    return workspace


def register(
    workspace: Workspace,
    server: RegistryServer,
    version: str | None = "v0003",
    *,
    location: str = LOCATION,
    patience: Patience = AT_ONCE,
    **fields: Any,
) -> Registration:
    """Register a version of ``demo``."""
    connection = Connection(**{"address": server.address, "token": server.token} | fields)
    return register_version(
        workspace, connection, model_name="demo", version=version, location=location, patience=patience
    )
