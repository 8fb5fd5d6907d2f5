"""Programs are compiled once: however many steps, batches and samples there are, no more."""

import dataclasses

import jax
import pytest

import runs
from vdm.run import evaluate, sample, train, trained
from vdm.run.config import DevicesConfig

pytestmark = pytest.mark.float32

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return runs.copy_of("points", tmp_path_factory.mktemp("points"))


@pytest.fixture
def compiled():
    """What counts the programs that a function compiles."""
    count = 0

    def seen(event, duration, **about):
        nonlocal count
        count += event == COMPILED

    def of(fn, *args):
        before = count
        fn(*args)
        return count - before

    jax.monitoring.register_event_duration_secs_listener(seen)
    yield of
    jax.monitoring.unregister_event_duration_listener(seen)


def test_a_training_compiles_its_step_once(compiled, tmp_path):
    def run(name, num_steps, per_dispatch=1):
        devices = DevicesConfig(steps_per_dispatch=per_dispatch)
        config = dataclasses.replace(runs.points(num_steps=num_steps), devices=devices)
        train.train(config, tmp_path / name)

    run("first", 4)  # what all trainings of a process share
    # The first state and the step; the step alone where there is a state.
    assert compiled(run, "run", 6) == 2
    assert compiled(run, "run", 14) == 1
    assert compiled(run, "several steps a dispatch", 8, 2) == 2


def test_an_evaluation_of_many_batches_compiles_no_more(compiled, workdir, tmp_path):
    run = trained.load(workdir)

    def measure(batch_size):
        settings = dataclasses.replace(
            run.config.evaluate, batch_size=batch_size, levels_per_example=1, num_steps="5,inf"
        )
        evaluate.evaluate(run, "test", settings, tmp_path)

    measure(1001)
    # Of four batches the last is shorter.
    assert compiled(measure, 1001) == compiled(measure, 4000) > 0


def test_samples_of_one_size_are_one_program(compiled, workdir):
    run = trained.load(workdir)

    def draw(num, seed):
        settings = dataclasses.replace(run.config.sample, batch_size=6, num_steps=3, seed=seed)
        sample.sample(run, num, settings)

    draw(8, 0)
    assert compiled(draw, 8, 0) == compiled(draw, 21, 1) == 0
