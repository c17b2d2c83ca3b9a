"""Where a process stands: alone, on a node of a job that was prepared for it, or as one of the processes of a run.

torchrun tells its processes so through RANK and others. Kubeflow Trainer's torch plugin puts into each pod of a
TrainJob what torchrun would take for its options (PET_NNODES for --nnodes), and leaves starting it to the command.
https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
https://www.kubeflow.org/docs/components/trainer/
A variable that is set to nothing counts as not set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from osft.config import MAX_PORT
from osft.errors import ConfigError

# Any number does: the nodes of one prepared job have an endpoint of their own.
PREPARED_RDZV_ID = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What the environment of a process says about the run that it belongs to; ``None``: it does not say."""

    global_rank: int | None = None
    """Number of this process in the run; ``None``: it is not one of the processes of a run yet."""

    local_rank: int | None = None
    """Number of this process on its node."""

    world_size: int | None = None
    """Processes of the run."""

    nnodes: int | None = None
    """Nodes of the run."""

    node_rank: int | None = None
    """Number of this node."""

    nproc_per_node: int | None = None
    """Processes on this node."""

    rdzv_endpoint: str | None = None
    """``host:port`` at which the processes, or the nodes, meet."""

    names: Mapping[str, str]
    """Of each parameter of ``osft()`` that is set here, the variable that sets it."""

    @property
    def is_worker(self) -> bool:
        """Whether this process was started as one of those that train."""
        return self.global_rank is not None

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "Surroundings":
        """Return what ``variables``, most often ``os.environ``, say.

        Raises:
            ConfigError: if one that is needed is missing, or is not what it should be.
        """
        if variables.get("RANK"):
            return _read_worker(variables)
        if variables.get("PET_NNODES"):
            return _read_node(variables)
        return cls(names={})

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of ``osft()`` with those that the environment decides.

        Args:
            given: the parameters that the caller gave, by name.

        Raises:
            ConfigError: if a given one is another than the environment's.
        """
        decided = {name: getattr(self, name) for name in self.names}
        for name, value in decided.items():
            if given.get(name) is not None and given[name] != value:
                raise ConfigError(
                    f"{name}={given[name]} was given, but the job that this runs in has {self.names[name]}={value}. "
                    "Leave it out."
                )
        if decided.get("rdzv_endpoint") is not None:
            decided["rdzv_id"] = PREPARED_RDZV_ID
        return {**decided, **given}


def _read_worker(variables: Mapping[str, str]) -> Surroundings:
    """Read what torchrun sets; the variables about nodes are only there if it was torchrun."""
    world_size = _whole_number(variables, "WORLD_SIZE", low=1)
    global_rank = _whole_number(variables, "RANK", below=world_size, limit="WORLD_SIZE")
    endpoint = _endpoint(variables, "MASTER_ADDR", "MASTER_PORT")
    names = {
        name: variable
        for name, variable in (
            ("nnodes", "GROUP_WORLD_SIZE"),
            ("node_rank", "GROUP_RANK"),
            ("nproc_per_node", "LOCAL_WORLD_SIZE"),
        )
        if variables.get(variable)
    }
    return Surroundings(
        global_rank=global_rank,
        local_rank=_whole_number(variables, "LOCAL_RANK", below=world_size, limit="WORLD_SIZE"),
        world_size=world_size,
        rdzv_endpoint=endpoint,
        names={**names, "rdzv_endpoint": "MASTER_ADDR:MASTER_PORT"},
        **{name: _whole_number(variables, variable) for name, variable in names.items()},
    )


def _read_node(variables: Mapping[str, str]) -> Surroundings:
    """Read what Kubeflow Trainer sets; a single node has no one to meet."""
    nnodes = _whole_number(variables, "PET_NNODES", low=1)
    names = {"nnodes": "PET_NNODES"}
    processes = rank = endpoint = None
    if variables.get("PET_NPROC_PER_NODE"):
        processes = _count_processes(variables["PET_NPROC_PER_NODE"])
        names["nproc_per_node"] = "PET_NPROC_PER_NODE"
    if nnodes > 1 or variables.get("PET_NODE_RANK"):
        rank = _whole_number(variables, "PET_NODE_RANK", below=nnodes, limit="PET_NNODES")
        names["node_rank"] = "PET_NODE_RANK"
    if nnodes > 1:
        endpoint = _endpoint(variables, "PET_MASTER_ADDR", "PET_MASTER_PORT")
        names["rdzv_endpoint"] = "PET_MASTER_ADDR:PET_MASTER_PORT"
    return Surroundings(nnodes=nnodes, node_rank=rank, nproc_per_node=processes, rdzv_endpoint=endpoint, names=names)


def _whole_number(
    variables: Mapping[str, str], name: str, *, low: int = 0, below: int | None = None, limit: str = ""
) -> int:
    text = _needed(variables, name)
    if not (text.isascii() and text.isdecimal()) or int(text) < low:
        raise ConfigError(f"the environment has {name}='{text}', which is not a whole number from {low} on.")
    if below is not None and int(text) >= below:
        raise ConfigError(f"the environment has {name}={text}, which is not below {limit}={below}.")
    return int(text)


def _needed(variables: Mapping[str, str], name: str) -> str:
    text = variables.get(name)
    if not text:
        cause = "PET_NNODES" if name.startswith("PET_") else "RANK"
        raise ConfigError(
            f"the environment has {cause}={variables[cause]} but no {name}. Set both, as torchrun or Kubeflow Trainer "
            "does, or neither."
        )
    return text


def _endpoint(variables: Mapping[str, str], address_name: str, port_name: str) -> str:
    address = _needed(variables, address_name)
    port = _whole_number(variables, port_name, low=1, below=MAX_PORT + 1, limit="the number of ports")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _count_processes(text: str) -> int:
    """Return what PET_NPROC_PER_NODE means here, by torchrun's own rule for words such as ``auto``."""
    # Imported here: it takes a second, and only a word needs it.
    from torch.distributed.run import determine_local_world_size

    try:
        count = determine_local_world_size(text)
    except ValueError as error:
        raise ConfigError(f"the environment has PET_NPROC_PER_NODE='{text}': {error}") from error
    if count < 1:
        raise ConfigError(f"the environment has PET_NPROC_PER_NODE='{text}', which leaves no process here.")
    return count
