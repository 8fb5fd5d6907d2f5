"""A run that is conditioned on vectors and fields, exported: the same numbers, in its own units."""

import json
import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import pytest

import runs
import vdm.run
from vdm.condition import Conditions
from vdm.run import cli, export
from vdm.run.data.condition import Scale

pytestmark = [pytest.mark.float32, pytest.mark.usefixtures("unchecked")]
NAMES = ("labels", "cond", "cond_field")
FIELDS = ("label", "vector", "field")
# What a receiver runs, who calls each program by what programs.json says of it.
ALONE = """
import json, sys
import jax, numpy as np
sys.modules["vdm"] = sys.modules["flax"] = None  # neither may be imported
folder, given, out = sys.argv[1:]
given = np.load(given)
found = {}
for name, arguments in json.load(open(f"{folder}/programs.json")).items():
    program = jax.export.deserialize(open(f"{folder}/{name}.jax_export", "rb").read())
    values = [given[one["name"]].astype(one["dtype"]) for one in arguments]
    for one, value in zip(arguments, values, strict=True):
        said = [5 if side == "b" else side for side in one["shape"]]
        assert list(value.shape) == said
    found[name] = program.call(*values)
np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A run on all three kinds, far from its first parameters, and what was exported of it."""
    folder = tmp_path_factory.mktemp("conditions")
    workdir = runs.copy_of("conditions", folder / "run")
    jaxtyping.config.update("jaxtyping_disable", True)
    assert cli.main(["export", f"--workdir={workdir}", str(folder / "out")]) == 0
    assert cli.main(["export", f"--workdir={workdir}", str(folder / "model.safetensors")]) == 0
    jaxtyping.config.update("jaxtyping_disable", False)
    return workdir, folder


def given_of(run, num=5):
    """Conditions of training examples, as users write them."""
    some = run.condition.some
    return Conditions(some.label[:num], some.vector[:num], some.field[:num])


def test_an_exported_run_takes_conditions_in_the_users_units(exports):
    workdir, folder = exports
    run = vdm.run.load(workdir)
    x = np.random.default_rng(0).integers(0, 17, (5, *run.shape)).astype(np.int32)
    expected = run.score(x, given_of(run), key=3).bpd
    for path in (folder / "out", folder / "model.safetensors"):
        other = vdm.run.load(path)
        assert other.condition == run.condition
        for one, kept in zip(other.condition.some, run.condition.some, strict=True):
            np.testing.assert_array_equal(one, kept)
        np.testing.assert_array_equal(other.score(x, given_of(other), key=3).bpd, expected)
        np.testing.assert_array_equal(other.sample(5, key=1), run.sample(5, key=1))


def test_programs_take_conditions_in_the_users_units_with_jax_alone(exports, tmp_path):
    workdir, folder = exports
    run, rng = vdm.run.load(workdir), np.random.default_rng(0)
    cond = given_of(run)
    cond = Conditions(cond.label, cond.vector.astype(np.float32), cond.field.astype(np.float32))
    arrays = {
        "z": rng.normal(size=(5, *run.shape)),
        "log_snr": np.linspace(-5, 7, 5),
        "seed": np.array(3),
        "index": np.arange(5),
        "x": rng.integers(0, 17, (5, *run.shape)),
        **{name: getattr(cond, field) for name, field in zip(NAMES, FIELDS, strict=True)},
    }
    np.savez(tmp_path / "given.npz", **arrays)
    words = [folder / "out", tmp_path / "given.npz", tmp_path / "found.npz"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, words)], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    z, log_snr = (arrays[name].astype(np.float32) for name in ("z", "log_snr"))
    standardised = run.condition.of_parts(5, cond)
    denoised = run.model.denoiser(run.params, standardised)(*map(jax.numpy.asarray, (z, log_snr)))
    np.testing.assert_allclose(found["denoiser"], denoised, rtol=1e-4, atol=1e-5)
    assert np.mean(found["sample"] == run.sample(5, cond, key=3)) > 0.999
    terms = run.score(arrays["x"].astype(np.int32), cond, key=3).terms
    np.testing.assert_allclose(found["score"].mean(1), terms, rtol=1e-4, atol=1e-5)


def test_what_a_program_takes_is_said(exports):
    _, folder = exports
    about = json.loads((folder / "out/programs.json").read_text())
    assert set(about) == {"denoiser", "sample", "score"}
    for name, arguments in about.items():
        program = jax.export.deserialize((folder / f"out/{name}.jax_export").read_bytes())
        assert [one["name"] for one in arguments][-3:] == list(NAMES)
        said = [(one["dtype"], [str(side) for side in one["shape"]]) for one in arguments]
        taken = [(str(aval.dtype), [str(side) for side in aval.shape]) for aval in program.in_avals]
        assert said == taken and all(one["what"] for one in arguments)
    run = vdm.run.load(runs.copy_of("classes", folder / "classes"))
    export.write(run, folder / "classes", folder / "out_of_classes", ("denoiser",))
    assert (folder / "out_of_classes/denoiser.jax_export").is_file()
    assert not (folder / "out_of_classes/programs.json").exists()


def test_the_scale_keeps_the_digits_of_values_far_from_zero():
    """Times in seconds of a day in 1970, say: float32 has them to 1/128 of a second."""
    scale = Scale((86_399.123456, -3.0), (0.05, 2.0))
    values = np.array([[86_399.1, -2.0], [86_399.2, 5.0], [np.nan, 0.0]], np.float32)
    found = jax.jit(lambda x: export._scaled(scale, x))(values)
    np.testing.assert_allclose(found, scale.applied(values), rtol=1e-6, equal_nan=True)
