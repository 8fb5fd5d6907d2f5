"""Film strips: what the model takes the data to be on the way from noise to a sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import runs
from oracles import scales
from vdm import samplers
from vdm.run import cli, trained
from vdm.run.errors import UserError
from vdm.run.film import frames, strip

pytestmark = pytest.mark.float32


def draw(workdir, *words, command="--trajectory=3"):
    out = workdir / "x.npy"
    assert cli.main(["sample", f"--workdir={workdir}", f"--out={out}", command, *words]) == 0
    return np.load(out)


@pytest.mark.parametrize("name", ["images", "points", "classes"])
def test_the_last_column_is_what_the_command_samples(name, tmp_path):
    workdir = runs.copy_of(name, tmp_path)
    shape = trained.load(workdir).shape
    for words in (
        ["--num=5"],
        ["--num=5", "--sampler=dpmpp_2m", "--final=draw", "--seed=4", "--grid=lambda"],
        ["--num=3", "--label=7"] if name == "classes" else ["--num=3", "--batch_size=2"],
    ):
        film = draw(workdir, *words)
        assert film.shape == (int(words[0][-1]), 3, *shape)
        plain = draw(workdir, *words, command="--no-clip_denoised")
        np.testing.assert_allclose(film[:, -1], plain, rtol=1e-5, atol=1e-6)
        assert np.any(film[:, 0] != film[:, -1])


def test_a_frame_is_the_data_that_the_denoiser_expects(tmp_path):
    """By the plain formula x̂ = (z − σ ε̂)/α along the trajectory of the library."""
    run = trained.load(runs.copy_of("points", tmp_path))
    film = frames.draw(run, 4, 3, run.config.sample, cond=None)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(4))
    grid = samplers.grids.uniform_in_time(run.model.log_snr(run.params), 5)
    eps_fn = run.model.denoiser(run.params)
    path = samplers.trajectory(keys, eps_fn, grid, (4, 2))
    for column, at in enumerate((0, 2)):
        a, s = scales(float(grid[at]))
        x_hat = (path[at] - s * eps_fn(path[at], grid[at])) / a
        np.testing.assert_allclose(film.x[:, column], x_hat, rtol=1e-4, atol=1e-5)
        assert film.log_snrs[column] == pytest.approx(float(grid[at]))


def test_seeds_share_one_program(tmp_path):
    run = trained.load(runs.copy_of("points", tmp_path))
    before = frames._draw._cache_size()
    for key in (0, 1, 2):
        frames.draw(run, 4, 4, run.config.sample, cond=None, key=key)
    assert frames._draw._cache_size() == before + 1


@pytest.mark.parametrize("kept", [(0, 2, 5), (3,), tuple(range(6))])
def test_a_trajectory_of_some_levels_is_part_of_the_whole(kept):
    def eps_fn(z, log_snr):
        return jnp.tanh(z)

    arguments = jax.random.key(0), eps_fn, jnp.linspace(-4.0, 4.0, 6), (3, 2)
    for sampler in ("ancestral", "dpmpp_2m"):
        whole = samplers.trajectory(*arguments, sampler=sampler)
        part = samplers.trajectory(*arguments, sampler=sampler, kept=kept)
        np.testing.assert_allclose(part, whole[np.array(kept)], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kept", [(), (0, 6), (2, 1), (1, 1), (-1, 2), (0.0, 1.0)])
def test_positions_that_are_none_are_named(kept):
    with pytest.raises(ValueError, match=r"increasing positions among the 6 noise levels, .* to 5"):
        samplers.trajectory(
            jax.random.key(0), lambda z, _: z, jnp.linspace(-4.0, 4.0, 6), (3, 2), kept=kept
        )


@pytest.mark.parametrize(
    ("shape", "levels", "how"),
    [
        ((2,), None, "points"),
        ((9,), None, "lines"),
        ((9, 2), None, "lines"),
        ((6, 5, 1), 17, "image"),
        ((6, 5, 3), None, "image"),
        ((6, 5, 4), None, "image"),
        ((4, 6, 5, 1), None, "slice"),
    ],
)
def test_every_kind_of_data_has_a_picture(shape, levels, how, tmp_path):
    """It is as wide as its columns and as high as its rows, and a change of a frame is seen."""
    path = tmp_path / "film.png"
    assert strip.kind(path, shape) == how
    x = np.random.default_rng(0).integers(0, levels or 99, (3, 4, *shape))
    x = x if levels else x.astype(np.float32)
    sizes, pictures = [], []
    for some in (x, x[:, :2], x.copy()):
        if len(pictures) == 2:  # another frame
            some[-1, 1] = some[0, -1]
        strip.write(strip.Film(some, np.linspace(-5, 5, some.shape[1])), path, levels=levels)
        with Image.open(path) as image:
            sizes.append(image.size)
            pictures.append(np.asarray(image).copy())
    assert sizes[0] == sizes[2] and sizes[0][0] == pytest.approx(2 * sizes[1][0], rel=0.02)
    assert np.any(pictures[0] != pictures[2])
    strip.write(strip.Film(x, np.zeros(4)), tmp_path / "film.npy", levels=levels)
    np.testing.assert_array_equal(np.load(tmp_path / "film.npy"), x)


def test_how_many_are_drawn(tmp_path, capsys):
    workdir = runs.copy_of("images", tmp_path)
    assert draw(workdir).shape == (8, 3, 8, 8, 1)
    assert cli.main(["sample", f"--workdir={workdir}", "--trajectory=4", "--num=2"]) == 0
    assert (workdir / "film.png").exists()
    capsys.readouterr()
    # Without a number ten columns, or as many as the steps have levels.
    assert draw(workdir, command="--trajectory").shape[1] == 4
    assert draw(workdir, "--steps=30", command="--trajectory").shape[1] == 10
    assert cli.main(["sample", f"--workdir={workdir}", "--trajectory=2", "--dry_run"]) == 0
    assert "3 steps of ancestral, 2 shown" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )
    with pytest.raises(UserError, match="at most 64 rows"):
        strip.number("image", 65)
    assert strip.number("points", None) == 500 and strip.number("array", 65) == 65
