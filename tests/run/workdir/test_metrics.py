"""What a run shows of itself: records, TensorBoard's events, pages of samples, rates."""

import dataclasses
import json
import os
import signal
import struct
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from vdm.networks import UNet
from vdm.run import data, figures, sample, train, trained
from vdm.run.compiled import chips
from vdm.run.config import DataConfig
from vdm.run.data.dataset import Examples
from vdm.run.errors import UserError
from vdm.run.system import signals
from vdm.run.training import build, flops, step, throughput
from vdm.run.workdir.metrics import EVENTS_FOLDER, METRICS_FILE

pytestmark = pytest.mark.float32


def records(workdir):
    return [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]


def events(path):
    """Return the events of a file: each is its length, two checksums, and itself."""
    from tensorboardX.proto.event_pb2 import Event

    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def test_tensorboard_shows_the_records_and_forgets_what_was_taken_back(tmp_path):
    train.train(runs.points(num_steps=4, tensorboard=True), tmp_path)
    train.train(runs.points(num_steps=6, tensorboard=True), tmp_path)
    first, second = sorted((tmp_path / EVENTS_FOLDER).iterdir())
    shown = {}
    for event in events(first) + events(second):
        for value in event.summary.value:
            shown.setdefault(event.step, {})[value.tag] = value.simple_value
    expected = records(tmp_path)
    assert list(shown) == [2, 4, 6] == [record["step"] for record in expected]
    for record in expected:
        values = shown[record.pop("step")]
        assert values == pytest.approx(record, rel=1e-6)
    starts = [event.step for event in events(second) if event.HasField("session_log")]
    assert starts == [5]  # readers drop what earlier files have from there on


def test_tensorboard_without_its_writer_is_one_line_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'vdm-jax\[tensorboard\]'"):
        train.train(runs.points(tensorboard=True), tmp_path)
    assert not (tmp_path / METRICS_FILE).exists()


def test_pages_of_samples_are_those_of_the_sample_command(tmp_path):
    config = runs.images(num_steps=4, sample_every=2, num_classes=10)
    train.train(config, tmp_path)
    pages = sorted((tmp_path / "samples").iterdir())
    assert [page.name for page in pages] == ["step_000002.png", "step_000004.png"]
    assert pages[0].read_bytes() != pages[1].read_bytes()
    run, dataset = trained.load(tmp_path), data.load(DataConfig("digits"), "train")
    x = sample.sample(run, 64, config.sample)
    figures.write(x, tmp_path / "again.png", levels=dataset.levels, data=dataset.x)
    assert pages[1].read_bytes() == (tmp_path / "again.png").read_bytes()


def test_data_without_a_picture_is_refused_before_the_first_step(tmp_path, monkeypatch):
    dataset = data.load(DataConfig("mixture"), "train")
    wider = Examples(dataset.x.reshape(-1, 1, 1, 1, 1, 2))
    wider = dataclasses.replace(dataset, examples=wider)
    monkeypatch.setattr(data, "load", lambda name, split: wider)
    with pytest.raises(
        UserError,
        match=r"sample_every is 1: real numbers of shape .* cannot be drawn",
    ):
        train.train(runs.points(sample_every=1), tmp_path)
    assert not list(tmp_path.iterdir())


def test_rates_follow_from_their_definition():
    assert throughput.rates(10, 4.0, 32, None) == {
        "steps_per_second": 2.5,
        "examples_per_second": 80.0,
    }
    assert throughput.rates(10, 4.0, 32, 10.0)["mfu"] == 0.25


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_goes_by_its_name(kind, peak):
    chip = chips.of(kind)
    assert (None if chip is None else chip.flops) == peak


def step_flops(remat=False, **changed):
    config = runs.points(batch_size=64, **changed)
    config.model.network.update(width=512, num_blocks=2, remat=remat)
    trainer = build.trainer(config)
    batch = step.Batch(np.zeros((1, 2), np.float32), None)
    state = jax.eval_shape(lambda: step.init_state(trainer, batch))
    return throughput.step_flops(trainer, state, batch), state


def test_the_flops_of_a_step_are_those_of_its_matrix_products():
    counted, state = step_flops()
    kernels = [leaf for leaf in jax.tree.leaves(state.params["network"]) if leaf.ndim == 2]
    # Forward, gradient by the weights, gradient by the inputs: a product and a sum each.
    assert counted == 3 * 2 * 64 * sum(kernel.size for kernel in kernels)
    assert step_flops(accumulation_steps=4)[0] == counted
    assert step_flops(remat=True)[0] == counted


def test_flops_are_counted_in_convolutions_loops_and_functions():
    """By hand, for a convolution of 3 channels to 7, and 4 rounds of a product 5×6 by 6×6."""
    x, kernel, matrix = jnp.zeros((2, 8, 9, 3)), jnp.zeros((3, 3, 3, 7)), jnp.zeros((6, 6))

    def fn(x, kernel, matrix):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        one = jax.checkpoint(jax.jit(lambda carry, _: (carry @ matrix, None)))
        return x, jax.lax.scan(one, jnp.ones((5, 6)), length=4)

    expected = 2 * (2 * 8 * 9 * 7) * 27 + 4 * 2 * 5 * 6 * 6
    assert flops.of(fn, x, kernel, matrix) == expected


def test_the_flops_of_the_paper_s_cifar10_network():
    """20.5 TFLOP for a training step with batches of 128 (VDM's own setting)."""
    network, shape = UNet(), jax.ShapeDtypeStruct
    z, log_snr = shape((128, 32, 32, 3), jnp.float32), shape((128,), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), z, log_snr)
    assert 3 * flops.of(network.apply, params, z, log_snr) == pytest.approx(20.5e12, rel=2e-3)


def test_mfu_is_recorded_where_the_peak_is_known(tmp_path, monkeypatch):
    train.train(runs.points(num_steps=2), tmp_path / "unknown")
    assert "mfu" not in records(tmp_path / "unknown")[0]
    monkeypatch.setattr(chips, "CHIPS", {"cpu": chips.Chip(1e9, 1e9, 1e9)})
    monkeypatch.setattr(throughput, "step_flops", lambda *arguments: 1e6)
    train.train(runs.points(num_steps=2), tmp_path / "known")
    (record,) = records(tmp_path / "known")
    assert record["mfu"] == pytest.approx(record["steps_per_second"] / 2000)  # two devices
    assert record["examples_per_second"] == pytest.approx(50 * record["steps_per_second"])


def test_sigterm_is_noted_and_means_again_what_it_meant_before():
    before = signal.getsignal(signal.SIGTERM)
    with signals.sigterm() as came:
        assert not came()
        os.kill(os.getpid(), signal.SIGTERM)
        assert came()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_trains_without_a_handler():
    said = []

    def run():
        with signals.sigterm() as came:
            said.append(came())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert said == [False]
