"""The page on a run: its figures are those of the records, and what is missing is said."""

import base64
import dataclasses
import io
import json
import math
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import runs
from pages import Reader, assert_self_contained
from vdm import few_steps
from vdm.condition import Conditions
from vdm.run import cli, evaluate, sample, train, trained
from vdm.run.data.dataset import Dataset, Examples
from vdm.run.evaluation.record import TERMS, Estimate
from vdm.run.report import (
    curves,
    nearest,
    origins,
    pictures,
    read,
    restored,
    results,
    samples,
    words,
    write,
)
from vdm.run.report.layout import Note
from vdm.run.workdir import chains

pytestmark = pytest.mark.float32


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with learned ends, evaluated at several T, with pages of samples; and its report."""
    folder = tmp_path_factory.mktemp("report")
    workdir = folder / "<b>run&"
    config = runs.images(num_steps=6, sample_every=3, log_every=1, checkpoint_every=3)
    config = dataclasses.replace(
        config,
        evaluate=dataclasses.replace(config.evaluate, num_steps="4,inf", levels_per_example=1),
        objective=dataclasses.replace(config.objective, law={"name": "adaptive"}),
    )
    train.train(config, workdir)
    run = trained.load(workdir)
    record = evaluate.evaluate(run, "test", run.config.evaluate, workdir)
    # What else an evaluation can hold; compiling it all would take longer than all the rest.
    clipped = [
        {**one, "clip_denoised": True, "bpd": {"mean": 1.5 + i, "sem": 0.0123, "n": 297}}
        for i, one in enumerate(record["results"])
    ]
    flow = {key: record[key] for key in ("split", "dataset", "dataset_version", "num_dims", "step")}
    flow |= {"bound": "ode", "dequantisation": "uniform", "num_samples": 5}
    flow |= {"bpd": {"mean": 3.25, "sem": 0.5, "n": 297}, "nfe": {"mean": 30.4, "max": 37.0}}
    record["results"] += [*clipped, flow]
    (workdir / "evaluation.json").write_text(json.dumps(record))
    out = write.write([workdir], None, 4)
    assert out == workdir / "report.html"
    return workdir, Reader(out)


def copied(made, tmp_path, *without):
    workdir = tmp_path / "run"
    shutil.copytree(made[0], workdir)
    for name in without:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return workdir


def paged(workdir, num=0):
    """Write the report and read it."""
    page = Reader(write.write([workdir], None, num))
    assert_self_contained(page)
    return page


def test_every_result_is_in_the_table(made):
    workdir, page = made
    *bounds, flow = json.loads((workdir / "evaluation.json").read_text())["results"]
    *shown, last = [row for row in page.cells if row[0] in ("test", "train")]
    assert len(bounds) == 8 and flow["bound"] == "ode"
    assert last == ["test", "297", "uniform", "5", "3.250 ± 0.500", "30 (at most 37)"]
    for result, row in zip(bounds, shown, strict=True):
        steps = {"inf": "∞"}.get(result["num_steps"], str(result["num_steps"]))
        assert row[:2] == [result["split"], "297"]
        assert row[2] == steps + (", x̂ clipped" if result.get("clip_denoised") else "")
        terms = [result["terms"][name] for name in TERMS]
        for text, value in zip(row[3:7], [result["bpd"], *terms], strict=True):
            mean, error = (float(word.replace("−", "-")) for word in text.split(" ± "))
            # Two figures of the error are shown, and the mean to the same place.
            places = len(text.split(".")[-1])
            assert abs(mean - value["mean"]) <= 0.51 * 10.0**-places
            assert abs(error - value["sem"]) <= max(0.05 * value["sem"], 0.51e-6)
        if result["num_steps"] == "inf":
            assert row[7] == ""
        else:
            rest = terms[0]["mean"] + terms[1]["mean"]
            assert float(row[7]) == pytest.approx(rest + result["diffusion_by_steps_law"], abs=1e-4)


def test_the_headline_is_the_evaluation(made):
    workdir, page = made
    record = json.loads((workdir / "evaluation.json").read_text())
    bpd = record["bpd"]
    text = " ".join(page.text.split())
    assert f"{words.with_error(bpd['mean'], bpd['sem'])} bits per dimension" in text
    assert "continuous time (T = ∞)" in page.text and "297 held-out examples" in page.text
    assert record["ids_checksum"] in page.text


@pytest.mark.parametrize(
    ("mean", "sem", "value", "error"),
    [
        (2.5, 0.25, "2.500", "± 0.250"),
        (2.6571, 0.00042, "2.65710", "± 0.00042"),
        (-0.0001, None, "0.000", ""),
    ],
)
def test_the_headline_shows_two_figures_of_its_error(made, mean, sem, value, error):
    run = read.read(made[0])
    result = dataclasses.replace(run.headline, bpd=Estimate(mean, sem, 1))
    evaluation = dataclasses.replace(run.evaluation, headline=result)
    found = results.headline(dataclasses.replace(run, evaluation=evaluation))
    assert (found.value, found.error) == (value, error)


def test_time_and_hardware_are_those_of_the_records(made):
    workdir, page = made
    (turn,) = json.loads((workdir / "sessions.json").read_text())
    record = json.loads((workdir / "evaluation.json").read_text())
    assert (turn["from_step"], turn["to_step"]) == (0, 6)
    assert page.rows("training took") == [["training took", words.duration(turn["seconds"])]]
    (row,) = page.rows("evaluation took")
    assert row[1] == words.duration(record["seconds"]) and 0 < record["seconds"] < 1000
    (row,) = page.rows("evaluation multiplied float32")
    assert row[1] == "precision highest"
    (row,) = page.rows("training ran on")
    assert row[1].startswith("2 × CPU") and turn["hardware"]["processor"] in row[1]
    (row,) = page.rows("versions")
    assert f"jax {turn['versions']['jax']}, " in row[1] and row[1].startswith("vdm ")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([(0, 0)], "3 s, estimated from the speed in its metrics"),  # not saved yet
        ([(0, 0), (0, 5), (5, 9)], "20 s in 2 sessions"),
        ([(400, 900)], "10 s, from step 400 on"),  # begun by an early version
    ],
)
def test_the_time_of_training_is_said_as_far_as_it_is_known(made, steps, said):
    run = read.read(made[0])
    (turn,) = run.sessions
    turns = tuple(dataclasses.replace(turn, seconds=10.0, from_step=a, to_step=b) for a, b in steps)
    run = dataclasses.replace(
        run, sessions=turns, metrics=({"step": 6.0, "steps_per_second": 2.0},)
    )
    (table,) = origins.made_of(run, restored.restore(run)).parts
    assert dict(table.rows)["training took"] == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "less than a second"),
        (59.6, "1 min 0 s"),
        (3599.0, "59 min 59 s"),
        (7500.0, "2 h 5 min"),
    ],
)
def test_times_are_said_as_people_say_them(seconds, said):
    assert words.duration(seconds) == said


def test_the_page_needs_nothing_else_and_escapes_names(made):
    assert_self_contained(made[1])
    assert "b" not in made[1].tags and "<b>run&" in made[1].text
    assert all(one["alt"] and int(one["width"]) > 0 for one in made[1].pictures)


def test_samples_stand_beside_their_nearest_examples(made):
    _, page = made
    of = [one["alt"] for one in page.pictures]
    assert [alt for alt in of if re.fullmatch(r"sample \d", alt)] == [
        f"sample {i}" for i in range(1, 5)
    ]
    assert sum(alt.startswith("training example") for alt in of) == 4
    # Two pages were drawn while training, of which eight cells each are shown.
    assert sum(bool(re.fullmatch(r"sample \d at step [36]", alt)) for alt in of) == 16


def test_cells_of_pages_are_the_samples_themselves(made):
    workdir, page = made
    run = trained.load(workdir)
    x = np.concatenate(list(sample.chunks(run, sample.GRID_SIZE, run.config.sample)))
    for i in range(8):
        (one,) = (p for p in page.pictures if p["alt"] == f"sample {i + 1} at step 6")
        with Image.open(io.BytesIO(base64.b64decode(one["src"].split(",")[1]))) as image:
            expected = np.round(x[i, ..., 0] * (255 / 16))
            np.testing.assert_array_equal(np.asarray(image), expected)


def test_pages_are_in_the_order_of_steps_and_damaged_ones_are_left_out(made, tmp_path):
    workdir = copied(made, tmp_path)
    folder = workdir / "samples"
    shutil.copy(folder / "step_000003.png", folder / "step_1000000.png")
    shutil.copy(folder / "step_000003.png", folder / "step_000003 copy.png")
    whole = (folder / "step_000003.png").read_bytes()
    (folder / "step_000004.png").write_bytes(whole[: len(whole) // 2])
    (folder / "step_000005.png").write_bytes(whole.replace(b"IDAT", b"ID\x00T"))
    grids = read.read(workdir).grids
    assert [read.step_of(path) for path in grids] == [3, 4, 5, 6, 1_000_000]
    gallery = pictures.while_training(grids, (8, 8, 1), cells=True)
    assert [name for name, _ in gallery.rows] == ["step 3", "step 6", "step 1,000,000"]


def test_a_command_keeps_the_bounds_it_would_replace(made):
    run = read.read(made[0])
    flow = run.results[-1]
    assert flow.bound == "ode"
    of_ode = dataclasses.replace(
        run, evaluation=dataclasses.replace(run.evaluation, results=(flow,))
    )
    command = f"vdm evaluate --workdir='{made[0]}'"  # quoted, for its < and &
    assert results.evaluate_command(of_ode) == f"{command} --bound=ode,vlb"
    assert results.evaluate_command(dataclasses.replace(run, evaluation=None)) == command


def test_the_law_is_a_density_and_the_schedule_has_its_ends(made):
    found = restored.restore(read.read(made[0]))
    ends = curves.column(read.read(made[0]), "log_snr_max")[-1]
    # Averaged parameters lag behind the last ones that the metrics name.
    assert abs(found.log_snr[0] - ends) < 0.1 and np.all(np.diff(found.log_snr) < 0)
    # The mean of 1/p under p is the length of the range; the rarest bins have three positions.
    length = found.log_snr[0] - found.log_snr[-1]
    assert np.mean(1.0 / found.density) == pytest.approx(length, rel=1e-2)
    assert np.ptp(found.density) > 0 and np.all(np.diff(found.log_snrs) >= 0)


def test_seconds_add_up_whatever_the_windows_are(made):
    lines = [(10.0, 2.0), (15.0, 5.0), (45.0, 10.0)]
    metrics = tuple({"step": step, "steps_per_second": rate} for step, rate in lines)
    run = dataclasses.replace(read.read(made[0]), metrics=metrics)
    np.testing.assert_allclose(curves.seconds(run), [5.0, 6.0, 9.0])


def test_the_start_does_not_squash_the_rest():
    curve = np.concatenate([[900.0, 40.0], np.linspace(2.0, 1.8, 38)])
    low, high, above = curves.limits([curve], [1.7])
    assert low < 1.7 and 2.0 < high < 2.2 and above == 2


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (
            ["evaluation.json", "evaluation_test.npz", "samples"],
            ["Not evaluated yet. vdm evaluate --workdir=", "No samples were drawn during training"],
        ),
        (  # as an imported run has it
            ["metrics.jsonl", "sessions.json", "data.json"],
            ["No metrics", "versions and the hardware of training were not recorded"],
        ),
        (
            ["checkpoints", "evaluation_test.npz"],
            ["holds no checkpoint", "297 held-out examples", "step 3"],
        ),
    ],
)
def test_what_is_missing_is_said(made, tmp_path, without, said):
    text = " ".join(paged(copied(made, tmp_path, *without)).text.split())
    for words_of_it in said:
        assert words_of_it in text


def test_a_record_that_early_versions_wrote_is_enough(made, tmp_path):
    workdir = copied(made, tmp_path, "sessions.json", "samples", "data.json")
    record = json.loads((workdir / "evaluation.json").read_text())
    for key in ("results", "seconds", "hardware", "versions", "profile", "i_mmse", "ids_checksum"):
        del record[key]
    (workdir / "evaluation.json").write_text(json.dumps(record))
    page = paged(workdir)
    assert len(page.rows("test")) == 1 and "No profile over λ was recorded" in page.text


def test_chains_and_their_paths_are_on_the_page(made, tmp_path):
    workdir = copied(made, tmp_path)
    record = json.loads((workdir / "evaluation.json").read_text())
    beside = {"bpd": {"mean": 1.75, "sem": 0.125, "n": 297}}
    beside |= {"num_paths": 1000, "looser": {"mean": 0.5, "sem": 0.25, "n": 297}}
    chain = {**record["results"][0], "chain": "head", "paths": beside}
    del chain["diffusion_by_steps_law"]
    record["results"].append(chain)
    (workdir / "evaluation.json").write_text(json.dumps(record))
    run = trained.load(workdir)
    made_of = few_steps.even(run.model, run.params, 3)
    about = {"params": run.params, "step": run.step, "kind": run.kind, "num_examples": 9}
    chains.write(workdir, made_of, "none", **about)
    page = paged(workdir)
    bpd = words.with_error(chain["bpd"]["mean"], chain["bpd"]["sem"])
    (row,) = page.rows("test", "297", "4, head chain")
    assert row[3] == bpd and row[7] == ""
    (row,) = page.rows("test", "4, head chain")
    assert row[2:] == ["1,000", bpd, "1.750 ± 0.125", "0.500 ± 0.250"]
    assert "The noise levels of the run’s chains of few steps" in page.text
    assert "T = 3" in page.text and "head chain" in page.text
    (workdir / "chains/chains.json").write_text("{")
    assert "The chains of few steps cannot be read: " in paged(workdir).text


def test_one_line_of_metrics_and_no_data_set_are_enough(made, tmp_path):
    """Samples are shown, without what they would be compared with."""
    workdir = copied(made, tmp_path)
    first = (workdir / "metrics.jsonl").read_text().splitlines()[0]
    (workdir / "metrics.jsonl").write_text(first + '\n{"step": 2, "lo')  # killed while writing
    values = json.loads((workdir / "config.json").read_text())
    values["data"].update(name="arrays", path=str(tmp_path / "gone.npy"))
    (workdir / "config.json").write_text(json.dumps(values))
    page = paged(workdir, 4)
    assert "The samples are not compared with the data" in page.text and "gone.npy" in page.text
    assert [one["alt"] for one in page.pictures if "sample" in one["alt"]][:1] == ["sample 1"]
    assert not page.rows("held-out examples")
    assert "The three terms of the bound" in page.text
    assert "λ(t)" in page.text and len(page.rows("test")) == 5


def samples_of(made, shape):
    """The parts of a report on three samples of a shape, with a field each, and 40 examples."""
    run = read.read(made[0])
    x = np.random.default_rng(0).integers(0, 17, (43, *shape), dtype=np.uint8)
    training = Dataset("volumes", "train", Examples(x[:40]), "volumes:1")
    near = nearest.nearest(x[40:], training)
    field = np.linspace(-2, 3, 3 * math.prod(shape[:-1])).reshape(3, *shape[:-1], 1)
    drawn = samples.Drawn(x[40:], Conditions(field=field), samples.Neighbours(training, near, near))
    return x[40:], x[near.position], near, samples.parts(run, restored.restore(run), drawn), drawn


def pixels(picture):
    with Image.open(io.BytesIO(base64.b64decode(picture.source.split(",")[1]))) as image:
        return np.asarray(image)


def test_volumes_are_seen_as_slices_beside_their_neighbours_and_fields(made):
    x, copies, near, (_, shown, table, figures_), _ = samples_of(made, (3, 3, 3, 2))
    assert "the field that the sample was given" in shown.caption
    # On the scale of what is seen of all fields: their middle slices.
    low, high = (-2 + 5 * at / 80 for at in (9, 54 + 17))
    for i, (cells, line) in enumerate(shown.columns):
        assert cells[1].text == f"training example {near.position[i]}, its nearest"
        for cell, volume in zip(cells, (x[i], copies[i]), strict=False):
            np.testing.assert_array_equal(pixels(cell), np.round(volume[1, ..., 0] * (255 / 16)))
        middle = 27 * i + 9 + np.arange(9).reshape(3, 3)  # of 81 numbers, evenly spaced
        seen = (-2 + 5 * middle / 80 - low) / (high - low)
        np.testing.assert_array_equal(pixels(cells[2]), np.round(255 * seen))
        assert line == f"{near.distance[i]:.3g}"
    assert [row[:2] for row in table.rows] == [("samples", "3"), ("held-out examples", "3")]
    assert table.rows[0][3] == f"{np.median(near.distance):.3g}" and len(figures_.figures) == 1
    assert "The samples were given conditions of training examples" in table.caption


def test_a_field_is_shown_without_neighbours_too_and_one_number_is_none(made):
    *_, drawn = samples_of(made, (3, 3, 1))
    alone = drawn._replace(neighbours=Note("The data are not there."))
    run = read.read(made[0])
    _, shown, _ = samples.parts(run, restored.restore(run), alone)
    assert [len(cells) for cells, _ in shown.columns] == [2, 2, 2]
    assert shown.caption.startswith("Samples. The last picture")
    *_, (_, shown, *_), _ = samples_of(made, (5,))  # vectors with one number beside each
    assert [len(cells) for cells, _ in shown.columns] == [2, 2, 2]
    assert "field" not in shown.caption


def test_examples_of_five_axes_have_distances_and_no_pictures(made):
    _, _, near, (_, note, table, figures_), _ = samples_of(made, (3, 2, 2, 2, 1))
    assert "Integers of shape [3, 2, 2, 2, 1] cannot be drawn" in note.text
    assert [row[:2] for row in table.rows] == [("samples", "3"), ("held-out examples", "3")]
    assert table.rows[0][3] == f"{np.median(near.distance):.3g}" and len(figures_.figures) == 1


def test_two_runs_are_side_by_side(made, tmp_path):
    """Pictures of both, and the difference of two parts of one evaluation by hand."""
    workdir = copied(made, tmp_path)
    record = json.loads((workdir / "evaluation.json").read_text())
    with np.load(workdir / "evaluation_test.npz") as kept:
        values = dict(kept)
    values["diffusion_inf"] += np.linspace(-0.1, 0.2, 297)
    np.savez(workdir / "evaluation_test.npz", **values)
    for one in (record, record["results"][1]):
        one["bpd"]["mean"] += 0.05
    (workdir / "evaluation.json").write_text(json.dumps(record))
    out = tmp_path / "both.html"
    write.write([made[0], workdir], out, 2)
    page = Reader(out)
    assert_self_contained(page)
    (row,) = page.rows("run", words.with_error(record["bpd"]["mean"], record["bpd"]["sem"]))
    sem = np.linspace(-0.1, 0.2, 297).std(ddof=1) / np.sqrt(297)
    assert row[2] == f"+0.0500 ± {sem:.4f}" and "paired" in page.text
    assert {one["alt"] for one in page.pictures} == {
        f"sample {i} of {name}" for i in (1, 2) for name in ("run", "<b>run&")
    }
    assert "The configs are the same." in page.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir={there}/none"], "no such workdir: .*/none"),
        (["--workdir={there}"], "holds no run"),
        ([], "expected --workdir=RUN or RUN .*, got neither"),
        (["{run}", "--workdir={run}"], "got both"),
        (["{run}", "{run}/../{name}"], "is named twice"),
        (["{run}", "--out={there}/page.pdf"], "is an .html file: got 'page.pdf'"),
        (["{run}", "--out={there}/file/page.html"], "cannot write to .*file"),
        (
            ["{run}", "--out={there}/folder.html"],
            "cannot write .*it exists already and is not a file",
        ),
        (["{run}", "--num=-1"], "--num must be at least 0: got -1"),
        (["{run}", "--split=test"], "unrecognised argument '--split=test'"),
        ([f"{{there}}/{i}" for i in range(7)], "at most 6 runs are compared on a page: got 7"),
    ],
)
def test_mistakes_are_one_line(made, tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.html").mkdir()
    places = {"run": made[0], "name": made[0].name, "there": tmp_path}
    assert cli.main(["report", *(word.format(**places) for word in arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)
