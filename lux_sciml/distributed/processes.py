"""initialize: several processes as one run."""

import importlib.util
import inspect
import os
from typing import Any

import jax

from .._compat import coordination
from ..core.converters import checks_itself, integer, number
from .watch import Watch

ENVIRONMENT = (
    ("JAX_COORDINATOR_ADDRESS", None, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
    ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"),  # of torchrun and its like
)
_watches: list[Watch] = []


@checks_itself
def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    *,
    timeout: float = 20.0,
    start_timeout: float = 300.0,
    shutdown_timeout: float = 300.0,
) -> int:
    """Join the processes of a run, before anything is computed; the number of this one. The mesh then spans them all.

    * `coordinator`, `processes`, `index`: the first process's address and port, `"10.0.0.1:1234"`, how many there are,
      and which one this is, counted from 0.
    * Where they are left out: the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
      MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK as torchrun sets them; else what JAX finds of SLURM, Open MPI or
      (with mpi4py) another MPI, Kubernetes or a TPU pod. Where nothing tells of several processes, this one is alone,
      and nothing is done.
    * `timeout`: seconds without a sign of life after which a process counts as gone. The others then end, with a
      sentence and exit status 1, and do not wait for it; at once, where a process is killed or raises an error. It must
      be longer than Python can be held up, as by a debugger.
    * `start_timeout`, `shutdown_timeout`: seconds in which all processes start, and end.

    On the CPU they exchange numbers by gloo. Raises `ValueError` for a part of the three numbers, `RuntimeError` where
    it is too late.

    >>> initialize()
    0
    """
    coordinator, processes, index = _from_environment(coordinator, processes, index)
    given = [x is not None for x in (coordinator, processes, index)]
    if any(given) and not all(given):
        raise ValueError(
            f"the address of the first process, the number of processes, and which one this is, come together; got "
            f"coordinator={coordinator!r}, processes={processes}, index={index}"
        )
    options: dict[str, Any] = {}
    if all(given):
        processes, index = integer(processes), integer(index)  # pyright: ignore[reportArgumentType]
        if not 0 <= index < processes:
            raise ValueError(f"processes are counted from 0, got index={index} of {processes}")
        if processes == 1:
            return 0
        options = {"coordinator_address": coordinator, "num_processes": processes, "process_id": index}
        options["cluster_detection_method"] = "deactivate"
    else:
        method = _cluster()
        if method is None:
            return 0
        if method:
            options["cluster_detection_method"] = method
    seconds: dict[str, Any] = {
        "initialization_timeout": int(number(start_timeout)),
        "heartbeat_timeout_seconds": max(10, int(3 * number(timeout))),  # the watch is to be first
        "shutdown_timeout_seconds": int(number(shutdown_timeout)),
    }
    known = inspect.signature(jax.distributed.initialize).parameters
    jax.distributed.initialize(**options, **{name: value for name, value in seconds.items() if name in known})
    found = coordination()
    if found is None:
        return jax.process_index()
    address, index, processes, share = found
    _watches.append(Watch(address.rpartition(":")[0].strip("[]"), index, processes, number(timeout), share))
    return index


def _from_environment(coordinator: Any, processes: Any, index: Any) -> tuple[Any, Any, Any]:
    if coordinator is not None or processes is not None or index is not None:
        return coordinator, processes, index
    for address, port, many, which in ENVIRONMENT:
        if all(name in os.environ for name in (address, many, which)):
            found = os.environ[address] + (f":{os.environ.get(port, '29400')}" if port else "")
            return found, int(os.environ[many]), int(os.environ[which])
    return None, None, None


def _cluster() -> str | None:
    """How JAX finds the processes: by itself, `""`, or by a method of this name; `None` where there is but one."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1"))
    if "SLURM_PROCID" in os.environ and int(tasks) > 1:
        return "slurm"
    for many in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if int(os.environ.get(many, "1")) > 1:
            if "OMPI_MCA_orte_hnp_uri" in os.environ:
                return "ompi"
            if importlib.util.find_spec("mpi4py") is None:
                raise ImportError(
                    "this MPI does not tell where its first process is: pip install mpi4py, or pass coordinator="
                    '"HOST:PORT", processes and index'
                )
            return "mpi4py"
    several_hosts = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return "" if several_hosts or "JOB_COMPLETION_INDEX" in os.environ else None
