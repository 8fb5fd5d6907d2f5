"""The record of an evaluation: early versions of its file, other forms, and what is kept."""

import json
import pathlib
import re

import numpy as np
import pytest

from vdm import VLB
from vdm.run.errors import UserError
from vdm.run.evaluation import bound, files, record, table
from vdm.run.evaluation.record import Estimate, Nfe, OdeResult, Origin, Terms, VlbResult

ORIGIN = Origin(dataset="digits", split="test", num_dims=64, step=3)
BPD = Estimate(2.0, 0.125, 4)
# What the first version wrote, which had one split and no law.
FIRST = {
    "bpd": {"mean": 2.0, "sem": 0.125, "n": 4},
    "terms": {name: {"mean": 0.5, "sem": None, "n": 4} for name in VLB._fields},
    "bound": "vlb",
    "num_steps": "inf",
    "dataset": "digits",
    "split": "test",
    "num_dims": 64,
    "levels_per_example": 2,
    "params": "ema",
    "step": 3,
    "seed": 0,
}
FLOW = {
    **{key: FIRST[key] for key in ("bpd", "dataset", "split", "num_dims", "step")},
    "bound": "ode",
    "dequantisation": "uniform",
    "num_samples": 5,
    "nfe": {"mean": 30.5, "max": 37.0},
}


def vlb(num_steps, **more):
    return VlbResult(BPD, Terms(BPD, BPD, BPD), num_steps, ORIGIN, **more)


def ode(num_samples, dequantisation=None):
    return OdeResult(BPD, dequantisation, num_samples, Nfe(30.5, 37.0), ORIGIN)


def parsed(value):
    return files.from_json(value, pathlib.Path("run/evaluation.json"))


def test_the_terms_are_those_of_the_bound():
    assert VLB._fields == record.TERMS


def test_what_the_first_version_wrote_is_read():
    found = parsed(FIRST)
    assert found.results == (found.headline,) and found.taken == record.Taken()
    assert found.headline.continuous and found.headline.origin.ids_checksum is None
    assert files.to_json(found) == {**FIRST, "results": [FIRST]}
    without = parsed({key: value for key, value in FIRST.items() if key != "params"})
    assert found.headline.origin.averaged and without.headline.origin.averaged
    assert not parsed({**FIRST, "params": "raw"}).headline.origin.averaged


def test_results_of_both_bounds_are_read_and_written_back():
    taken = {"seconds": 1.5, "versions": {"vdm": "0.1.0"}}
    clipped = {**FIRST, "num_steps": 10, "clip_denoised": True, "diffusion_by_steps_law": 0.75}
    value = {**FIRST, **taken, "results": [FIRST, clipped, FLOW]}
    found = parsed(value)
    assert files.to_json(found) == value
    assert found.results[1].by_steps_law == 0.5 + 0.5 + 0.75
    assert found.results[2].nfe.max == 37.0 and found.results[2].origin.num_dims == 64


def test_chains_and_paths_are_read_and_written_back():
    beside = {"num_paths": 20, "bpd": FIRST["bpd"], "looser": FIRST["bpd"]}
    chain = {**FIRST, "num_steps": 10, "clip_denoised": True, "chain": "head", "paths": beside}
    found = parsed({**FIRST, "results": [FIRST, chain]})
    assert files.to_json(found)["results"] == [FIRST, chain]
    first, second = found.results
    assert (first.chain, first.paths, first.chain_name) == (None, None, "")
    assert second.paths == record.Paths(20, BPD, BPD) and second.chain_name == "head chain"
    assert vlb(10, chain="none").chain_name == "chain"


def test_the_precision_is_read_written_and_printed(capsys):
    value = {**FIRST, "precision": "default"}
    value["results"] = [dict(value), {**FLOW, "precision": "highest"}, FLOW]
    found = parsed(value)
    assert files.to_json(found) == value
    assert [one.precision for one in found.results] == ["default", "highest", None]
    table.show(found.results)
    assert "precision of float32: default and highest\n" in capsys.readouterr().out
    table.show([found.results[2]])  # of an early version
    assert "precision" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], " must hold an object: got a list of 0"),
        ({}, ": bound is missing: expected a text"),
        ({**FIRST, "bound": "vbl"}, ": unknown bound 'vbl': expected .*'vlb'"),
        ({**FIRST, "bpd": 2.0}, ": bpd must be an object: got 2.0"),
        ({**FIRST, "bpd": {"mean": 2.0, "sem": -1.0, "n": 4}}, ": bpd.sem must be .* at least 0"),
        ({**FIRST, "precision": 24}, ": precision must be a text: got 24"),
        ({**FIRST, "chain": 10}, ": chain must be a text: got 10"),
        ({**FIRST, "paths": {"num_paths": 0}}, ": paths.num_paths must be .* at least 1: got 0"),
        ({**FIRST, "terms": {}}, ": terms.prior is missing: expected an object"),
        ({**FIRST, "num_steps": "many"}, ': num_steps must be .* or "inf": got "many"'),
        ({**FIRST, "results": {}}, ": results must be a list: got an object"),
        ({**FIRST, "results": [FIRST, "vlb"]}, r": results\[1\] must be an object: got \"vlb\""),
        ({**FIRST, "results": [{**FLOW, "bound": "vlb"}]}, r": results\[0\].terms is missing"),
        ({**FIRST, "results": [{**FLOW, "bound": "ood"}]}, r": unknown results\[0\].bound 'ood'"),
        ({**FIRST, "seconds": "long"}, ': seconds must be .*: got "long"'),
        ({**FIRST, "hardware": {}}, ": hardware.platform is missing: expected a text"),
    ],
)
def test_another_form_is_one_line(value, message):
    with pytest.raises(UserError, match=f"^run/evaluation.json{message}"):
        parsed(value)


@pytest.mark.parametrize(
    ("log_snr", "error", "message"),
    [
        ([1.0], [], "profile.log_snr must be at least two edges: got a list of 1"),
        ([0.0, 1.0, 2.0], [0.5], "profile.error.mean must be 2 numbers: got a list of 1"),
        ([0.0, 1.0, 2.0], [0.5, 0.5], "profile.information.sem must be 3 numbers: got a list of 2"),
    ],
)
def test_a_profile_has_a_mean_for_every_interval(log_snr, error, message):
    profile = {
        "log_snr": log_snr,
        "error": {"mean": error, "sem": None},
        "information": {"mean": [0.0, 1.0, 2.0], "sem": [0.0, 0.5]},
    }
    with pytest.raises(UserError, match=re.escape(message)):
        parsed({**FIRST, "profile": profile})


@pytest.mark.parametrize(
    ("results", "first"),
    [
        ([vlb(7), vlb(90), vlb(8), vlb(99, clip_denoised=True), ode(500)], 1),
        ([vlb(10), vlb("inf"), vlb(90)], 1),
        ([vlb(10), vlb(20), vlb(50, chain="head"), vlb(30, chain="table")], 1),
        ([vlb(10, chain="head"), vlb(50, chain="head")], 1),
        ([ode(1, "uniform"), ode(9), ode(3, "uniform"), vlb("inf")], 2),
    ],
)
def test_the_headline_is_like_the_first_and_has_the_most_steps_or_draws(results, first):
    assert record.headline(results) is results[first]


def test_only_the_same_bound_of_the_same_split_is_of_one_kind():
    train = VlbResult(BPD, Terms(BPD, BPD, BPD), 7, Origin("digits", "train", 64, 3))
    different = [vlb(7), vlb(8), vlb(7, clip_denoised=True), train, ode(7), ode(7, "uniform")]
    different += [vlb(7, chain=name) for name in ("none", "table", "head")]
    assert len({record.kind(result) for result in different}) == len(different)
    assert record.kind(vlb(7, law="sigmoid")) == record.kind(vlb(7))


def test_a_chain_has_columns_of_its_own():
    chain = vlb(7, chain="head", clip_denoised=True)
    names = {*files.columns(chain), *files.numbers_of_paths(chain, VALUES, VALUES)}
    assert names == {
        *(f"{term}_7_head_chain_clipped" for term in record.TERMS),
        "paths_7_head_chain_clipped",
        "looser_7_head_chain_clipped",
    }
    others = [vlb(7), vlb(7, clip_denoised=True), vlb(7, chain="none", clip_denoised=True)]
    assert not names & {name for other in others for name in files.columns(other)}


VALUES = np.array([1.0, 2.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("kept", "there"),
    [
        ({"ode_uniform_5": VALUES}, True),
        ({"ode_uniform_5": VALUES.astype(np.float32)}, True),
        ({"ode_5": VALUES}, False),
        ({"ode_uniform_5": VALUES + 1e-6}, False),  # of another evaluation
        ({"ode_uniform_5": np.append(VALUES, 2.0)}, False),
        ({"ode_uniform_5": np.array(2.0)}, False),
        ({"ode_uniform_5": np.array(["1", "2", "2", "x"])}, False),
    ],
)
def test_the_numbers_of_examples_are_those_of_the_result(tmp_path, kept, there):
    np.savez(tmp_path / "evaluation_test.npz", **kept)
    found = files.of_examples(tmp_path, parsed(FLOW).headline)
    assert (found is not None) == there
    if there:
        np.testing.assert_array_equal(found, VALUES)


def test_every_damaged_byte_is_noticed_or_does_not_matter(tmp_path):
    path, flow = tmp_path / "evaluation_test.npz", parsed(FLOW).headline
    np.savez(path, ode_uniform_5=VALUES)
    whole = path.read_bytes()
    for i in range(len(whole)):
        for mask in (0xFF, 0x08):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ mask]) + whole[i + 1 :])
            found = files.of_examples(tmp_path, flow)
            assert found is None or np.array_equal(found, VALUES)
    np.save(path.with_suffix(".npy"), VALUES)
    path.with_suffix(".npy").rename(path)
    assert files.of_examples(tmp_path, flow) is None


def test_there_may_be_no_file(tmp_path):
    assert files.read(tmp_path) is None
    (tmp_path / files.RESULT_FILE).write_text(json.dumps(FLOW))
    assert files.read(tmp_path).headline.num_samples == 5


def test_the_error_of_an_example_is_that_of_a_mean_of_independent_levels():
    levels = np.random.default_rng(0).normal(3.0, 2.0, (500, 16, 3))
    error = bound.error(levels)
    # σ√3/√16; 7,500 degrees of freedom give it to 0.8 %, here within five of these.
    assert np.sqrt(np.mean(error**2)) == pytest.approx(2 * np.sqrt(3 / 16), rel=0.04)
    assert bound.error(levels[:, :1]) is None
