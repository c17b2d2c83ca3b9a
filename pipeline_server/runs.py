"""Runs and the experiment that holds them; a run's name says what it is."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from osft.data.download.links import public_uri
from pipeline_server.client import PipelineServer, silence
from pipeline_server.errors import CONFLICT, PipelineServerError
from pipeline_server.upload import PipelineVersion

# Characters of a part of a name; the server keeps 191 of the whole.
PART_LENGTH = 48


def describe(arguments: Mapping[str, Any]) -> str:
    """Return which model learns what, and how much of it may move; nothing secret of a link.

    Args:
        arguments: the pipeline's parameters, defaults included; those that it does not have are left out.
    """
    parts = [_last_part(str(arguments["model_base"]))] if "model_base" in arguments else []
    if "data_uri" in arguments:
        parts.append(f"on {_last_part(str(arguments['data_uri']))}")
    if "train_unfreeze_rank_ratio" in arguments:
        parts.append(f"rho {arguments['train_unfreeze_rank_ratio']:g}")
    if "sweep_ratios" in arguments:
        parts.append(f"rho {_cut(', '.join(map(str, arguments['sweep_ratios'])))}")
    return " ".join(parts)


def name_run(arguments: Mapping[str, Any], now: datetime) -> str:
    """Return a run's name: model, data, rho and date."""
    return f"{describe(arguments)} {now:%Y-%m-%d %H:%M}".strip()


def ensure_experiment(server: PipelineServer, name: str) -> str:
    """Return the id of the experiment ``name``, which is created if there is none.

    Raises:
        PipelineServerError: if the server refuses, or cannot be reached.
    """
    with silence():
        try:
            return str(server.create_experiment(name, namespace=server.namespace).experiment_id)
        except PipelineServerError as error:
            if error.status != CONFLICT:
                raise
            # Created between the client's look and its request.
            return str(server.get_experiment(experiment_name=name, namespace=server.namespace).experiment_id)


def start_run(
    server: PipelineServer, version: PipelineVersion, experiment_id: str, name: str, arguments: Mapping[str, Any]
) -> str:
    """Start a run and return its id.

    Raises:
        PipelineServerError: if the server refuses, or cannot be reached.
    """
    with silence():
        run = server.run_pipeline(
            experiment_id, name, params=dict(arguments), pipeline_id=version.pipeline_id, version_id=version.version_id
        )
    return str(run.run_id)


def _last_part(address: str) -> str:
    """Return what an address ends with: a file, a model, a data set."""
    address = public_uri(address)
    return _cut(address.rstrip("/").rpartition("/")[2] or address)


def _cut(part: str) -> str:
    return part if len(part) <= PART_LENGTH else f"{part[: PART_LENGTH - 1]}…"
