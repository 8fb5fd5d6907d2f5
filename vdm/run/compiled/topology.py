"""Devices that are not there, to compile programs for."""

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
from jax.experimental import topologies

from vdm.run.errors import UserError

# What a TPU's compiler would ask the machine for; read when its library is loaded.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several compilers on one machine: no device is taken
}
EXAMPLES = "v5e:4x4, v5p:2x2x1 or v6e:16x16"


def devices(name: str) -> Sequence[jax.Device]:
    """Return the devices of a TPU slice such as "v5e:4x4", to compile for; none is needed here.

    Raises UserError for a name that the compiler does not know, and where it is not installed.
    """
    if not re.fullmatch(r"v\d+[a-z]*:\d+(x\d+)+", name):
        raise UserError(f"--topology must be a TPU slice such as {EXAMPLES}: got {name!r}")
    installed = importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")
    if not installed:
        raise UserError(
            "--topology needs the compiler for TPUs, which is not installed: "
            "pip install 'vdm-jax[aot]'"
        )
    for variable, value in ALONE.items():
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0].partition(": ")[2]
        raise UserError(
            f"--topology: {said}; expected a TPU slice such as {EXAMPLES}, got {name!r}"
        ) from error


@contextmanager
def little_effort() -> Iterator[None]:
    """Compile with little effort for speed: minutes for a TPU become seconds.

    Memory and bytes moved may be more than those of the program that will run.
    """
    name = "jax_exec_time_optimization_effort"
    before = jax.config.values[name]
    jax.config.update(name, -1.0)
    try:
        yield
    finally:
        jax.config.update(name, before)
