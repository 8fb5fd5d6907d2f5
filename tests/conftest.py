"""Every test runs strictly: float64, types and shapes checked, no silent broadcasting.

The import hook executes each jaxtyping annotation of the package, so it has to be
installed before anything imports `vdm`. Tests marked `float32`, the precision users
have by default, run with x64 off, and so do the fixtures that they are first to need.
Everything here costs more to compile than to run: it is compiled without optimisation,
and once.
"""

import sys
import tempfile

import jax
import jaxtyping
import pytest

assert "vdm" not in sys.modules, "vdm was imported before its annotations could be checked"
jaxtyping.install_import_hook("vdm", "beartype.beartype")

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
jax.config.update("jax_disable_most_optimizations", True)
# Training, resuming and evaluating compile the same functions again and again.
_compiled = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", _compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    jax.config.update("jax_enable_x64", item.get_closest_marker("float32") is None)
    return (yield)


@pytest.fixture
def unchecked():
    """Switch the annotations off, to meet the errors that users meet."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
