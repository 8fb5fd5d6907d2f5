"""A trained run on a machine that does not have its data: loaded, sampled, reported, compressed."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import runs
import vdm.run
from vdm.run import cli, config as configs, data, train, trained
from vdm.run.config import DataConfig
from vdm.run.data import images
from vdm.run.data.condition import Condition
from vdm.run.data.dataset import held_out
from vdm.run.errors import UserError

pytestmark = pytest.mark.float32


@pytest.fixture(autouse=True)
def as_in_a_new_process():
    """What this process has read is kept for the next reader."""
    data.load.cache_clear()
    images.survey.cache_clear()


@pytest.fixture(scope="module")
def images_gone(tmp_path_factory):
    """A run on two classes of grey images, whose folder is no longer there."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(24):
        file = folder / "data" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 6), np.uint8)).save(file)
    config = runs.images(num_classes=2)
    config.model.likelihood["levels"] = 256
    where = DataConfig("images", path=str(folder / "data"))
    train.train(dataclasses.replace(config, data=where), folder / "run")
    shutil.rmtree(folder / "data")
    return folder / "run"


@pytest.fixture(scope="module")
def points_gone(tmp_path_factory):
    """A run on points in the plane, whose file is no longer there."""
    folder = tmp_path_factory.mktemp("points")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32))
    where = DataConfig("arrays", path=str(folder / "x.npy"))
    train.train(dataclasses.replace(runs.points(), data=where), folder / "run")
    (folder / "x.npy").unlink()
    return folder / "run"


def test_a_relative_path_leads_to_the_data_from_any_folder(tmp_path, monkeypatch):
    project, x = tmp_path / "project", np.arange(180, dtype=np.float32).reshape(90, 2)
    (project / "mine").mkdir(parents=True)
    np.save(project / "mine/x.npy", x)
    monkeypatch.chdir(project)
    workdir = pathlib.Path("runs/own")
    runs.copy_of("points", workdir)
    for name in (configs.CONFIG_FILE, data.DATA_FILE):
        (workdir / name).unlink()
    config = dataclasses.replace(runs.points(), data=DataConfig("arrays", path="mine/x.npy"))
    configs.keep(config, workdir)
    data.keep(data.load(config.data, "train"), workdir, data.seen_from(workdir, "mine/x.npy"))
    # A notebook's folder, where other data have the same name; then the whole project is moved.
    (tmp_path / "notebooks/mine").mkdir(parents=True)
    np.save(tmp_path / "notebooks/mine/x.npy", x[:50] + 1000)
    monkeypatch.chdir(tmp_path / "notebooks")
    for place in ("../project", "../moved"):
        if place == "../moved":
            project.rename(tmp_path / "moved")
        data.load.cache_clear()
        run = vdm.run.load(f"{place}/runs/own")
        rows = held_out(90, "train")
        np.testing.assert_array_equal(trained.dataset(run, "train").x, x[rows])
    # Through a link to the workdir, which leads to another folder above.
    (tmp_path / "links/deep").mkdir(parents=True)
    (tmp_path / "links/deep/own").symlink_to(tmp_path / "moved/runs/own")
    path = vdm.run.load("../links/deep/own").config.data.path
    assert path == str(tmp_path / "moved/mine/x.npy")
    # Trained through the link: what it saw is as seen from there.
    (tmp_path / "links/x.npy").write_bytes((tmp_path / "moved/mine/x.npy").read_bytes())
    linked = dataclasses.replace(config, data=DataConfig("arrays", path="not/there.npy"))
    kept = dataclasses.replace(data.kept(pathlib.Path("../links/deep/own")), path="../../x.npy")
    found = pathlib.Path("../links/deep/own") / data.DATA_FILE
    before = found.read_text()
    found.write_text(json.dumps(dataclasses.asdict(kept)))
    assert data.located(linked, found.parent).data.path == "../links/x.npy"
    found.write_text(before)
    # Data that are not there are looked for in the current folder.
    (tmp_path / "moved/mine/x.npy").unlink()
    assert vdm.run.load("../moved/runs/own").config.data.path == "mine/x.npy"
    # What an absolute path names does not depend on the current folder.
    assert data.seen_from(workdir, str(tmp_path / "x.npy")) is None


def test_a_run_is_loaded_with_shape_and_condition(images_gone):
    for workdir in (images_gone, str(images_gone)):
        run = vdm.run.load(workdir)
        assert run.shape == (4, 6, 1) and run.condition == Condition(2)
        assert (run.step, run.kind) == (3, "ema")
    assert vdm.run.load(images_gone, params="raw").kind == "raw"
    with pytest.raises(UserError, match="'ema'"):
        vdm.run.load(images_gone, params="emma")


def test_images_are_sampled_and_reported_without_their_folder(images_gone, tmp_path):
    workdir = f"--workdir={images_gone}"
    assert cli.main(["sample", workdir, "--num=5", f"--out={tmp_path / 's.npy'}"]) == 0
    assert np.load(tmp_path / "s.npy").shape == (5, 4, 6, 1)
    assert cli.main(["sample", workdir, "--num=5", f"--out={tmp_path / 's.png'}"]) == 0
    assert cli.main(["report", workdir, "--num=4", f"--out={tmp_path / 'r.html'}"]) == 0
    page = (tmp_path / "r.html").read_text()
    assert 'alt="sample 2 of class 1"' in page
    assert "The samples are not compared with the data: no folder" in page


def test_evaluation_says_that_it_needs_the_data(images_gone, capsys):
    assert cli.main(["evaluate", f"--workdir={images_gone}"]) == 2
    assert "no folder" in capsys.readouterr().err


def test_points_are_sampled_without_their_file(points_gone, tmp_path, capsys):
    out = tmp_path / "s.png"
    assert cli.main(["sample", f"--workdir={points_gone}", "--num=7", f"--out={out}"]) == 0
    assert "the picture shows the samples without the data" in capsys.readouterr().err
    with Image.open(out) as image:
        assert image.size == (400, 400)  # one panel of two


def test_files_are_compressed_without_the_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(folder / f"{i}.png")
    config = runs.images()
    config.model.likelihood["levels"] = 256
    where = DataConfig("images", path=str(folder))
    train.train(dataclasses.replace(config, data=where), tmp_path / "run")
    folder.rename(tmp_path / "elsewhere")
    workdir = f"--workdir={tmp_path / 'run'}"
    packed, back = tmp_path / "x.vdm", tmp_path / "back"
    assert cli.main(["compress", str(tmp_path / "elsewhere"), str(packed), workdir]) == 0
    assert cli.main(["decompress", str(packed), str(back), workdir]) == 0
    for file in sorted((tmp_path / "elsewhere").iterdir()):
        np.testing.assert_array_equal(Image.open(file), Image.open(back / file.name))


def test_other_data_than_the_run_was_trained_on_are_refused(points_gone, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(points_gone, workdir)
    path = points_gone.parent / "x.npy"
    np.save(path, np.zeros((90, 3), np.float32))
    try:
        assert cli.main(["evaluate", f"--workdir={workdir}"]) == 2
    finally:
        path.unlink()
    assert (
        "the model expects examples of shape [2]: got arrays/x.npy of shape [3]"
        in capsys.readouterr().err
    )


def test_one_device_is_taken_for_a_code(images_gone):
    run = trained.load(images_gone, devices=trained.one_device())
    assert run.mesh.size == 1 and vdm.run.load(images_gone).mesh.size == 2


def test_a_report_is_not_misled_by_other_data_of_the_same_name(points_gone, tmp_path):
    path = points_gone.parent / "x.npy"
    np.save(path, np.zeros((90, 3), np.float32))
    workdir = f"--workdir={points_gone}"
    try:
        assert cli.main(["report", workdir, "--num=4", f"--out={tmp_path / 'r.html'}"]) == 0
        assert cli.main(["sample", workdir, "--num=4", f"--out={tmp_path / 's.png'}"]) == 0
    finally:
        path.unlink()
    page = (tmp_path / "r.html").read_text()
    assert "not compared with the data: the model" in page and "[3]" in page
