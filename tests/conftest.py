"""Every test runs strictly: float64, types and shapes checked, no silent broadcasting.

The import hook executes each jaxtyping annotation of the package, so it has to be
installed before anything imports `vdm`. Tests marked `float32`, the precision users
have by default, run with x64 off, and so do the fixtures that they are first to need.
Everything here costs more to compile than to run: it is compiled without optimisation,
and once.
"""

import contextlib
import importlib
import os
import sys
import tempfile

import jax
import jaxlib.version
import jaxtyping
import pytest

assert "vdm" not in sys.modules, "vdm was imported before its annotations could be checked"
jaxtyping.install_import_hook("vdm", "beartype.beartype")

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_traceback_in_locations_limit", 0)  # a tenth of the time of a small program
# XLA's older code generator compiles in half the time; later versions do not have it, and end at
# a flag that they do not know. Subprocesses inherit it.
OLDER = "--xla_cpu_use_fusion_emitters=false"
if jaxlib.version.__version_info__ < (0, 11) and OLDER not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {OLDER}"
# Training, resuming and evaluating compile the same functions again and again, in every worker of
# pytest-xdist. Who reads an entry while another writes it finds it incomplete, and compiles.
if "VDM_TESTS_COMPILED" not in os.environ:
    _compiled = tempfile.TemporaryDirectory()
    os.environ["VDM_TESTS_COMPILED"] = _compiled.name
jax.config.update("jax_compilation_cache_dir", os.environ["VDM_TESTS_COMPILED"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
MOST_PLACES = 15_000


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests marked long, too")


def pytest_collection_modifyitems(config, items):
    """Leave out what takes long and what other tests see the faults of."""
    if config.getoption("--all"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    jax.config.update("jax_enable_x64", item.get_closest_marker("float32") is None)
    result = yield
    # Every program that is kept takes some of the 65,530 places that Linux gives a process in
    # memory (vm.max_map_count); with none left, the next one ends the process.
    if nextitem is None or nextitem.path != item.path:
        with contextlib.suppress(OSError), open("/proc/self/maps", "rb") as places:
            if sum(1 for _ in places) > MOST_PLACES:
                jax.clear_caches()
    return result


@pytest.fixture
def unchecked():
    """Switch the annotations off, to meet the errors that users meet."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """An empty current folder, whose modules are forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
