"""Whether bits show an unusual image: a model that has never seen a class scores the test split.

    python benchmarks/anomaly.py --runs=runs/anomaly
    python benchmarks/anomaly.py --runs=runs/anomaly_digits --config=experiments/digits.py

The first trains on the MNIST digits 0 to 8 as experiments/mnist.py says, and scores all 10,000
test images. AUROC is the probability that an image of the class left out has more than one of the
others, by bits per dimension, by the size of its PNG file (Pillow, optimize=True), and by their
difference; ½ is chance, ± the standard deviation over 200 bootstrap samples of the images. The last
line has the correlation of bits and PNG size.

The run and the scores are kept in the folder `--runs`: a second call trains no more.
"""

import argparse
import io
import pathlib

import numpy as np
from sklearn.metrics import roc_auc_score

import short_runs
from vdm.run import cli, data, figures, train, trained
from vdm.run.data.dataset import settle

BOOTSTRAPS = 200


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/anomaly"))
    parser.add_argument("--left_out", type=int, default=9, help="the class that is not trained on")
    parser.add_argument("--levels", type=int, default=16, help="noise levels for each image")
    parser.add_argument("--num", type=int, default=None, help="test images, all by default")
    options, flags = parser.parse_known_args()
    config = cli.read_config(flags or ["--config=experiments/mnist.py"])
    train_set, test = (settle(data.load(config.data, split), "yes") for split in ("train", "test"))
    known = {
        name: part.x[part.labels != options.left_out]
        for name, part in (("train", train_set), ("test", test))
    }
    options.runs.mkdir(parents=True, exist_ok=True)
    path = options.runs / f"without_{options.left_out}.npz"
    np.savez(path, **known)
    kept = short_runs.changed(config, {"data.name": "arrays", "data.path": str(path)})
    workdir = options.runs / f"without_{options.left_out}"
    train.train(kept, workdir)
    run = trained.load(workdir)
    x, unusual = test.x[: options.num], test.labels[: options.num] == options.left_out
    found = run.score(x, key=0, levels_per_example=options.levels, progress=True)
    png = np.array([8 * png_bytes(image) / image.size for image in x])
    np.savez(workdir / "anomaly.npz", bpd=found.bpd, error=found.error, png=png, unusual=unusual)
    table({"bits": found.bpd, "PNG": png, "bits less PNG": found.bpd - png}, unusual)
    error = np.sqrt(np.mean(found.error**2))
    print(f"\nMonte Carlo errors of the bits, root mean square: {error:.4f}; step {run.step}")
    print(f"correlation of bits and PNG: {np.corrcoef(found.bpd, png)[0, 1]:.3f}")


def png_bytes(image):
    """Return the size of an image [h, w, c] as a PNG file."""
    file = io.BytesIO()
    figures.image(image.astype(np.uint8)).save(file, "PNG", optimize=True)
    return len(file.getvalue())


def table(columns, unusual):
    """Print for every score its means and how well it tells the two kinds of images apart."""
    print("| score, bits per dimension | others | left out | AUROC |\n| --- | --- | --- | --- |")
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, len(unusual), len(unusual)) for _ in range(BOOTSTRAPS)]
    for name, values in columns.items():
        spread = np.std([roc_auc_score(unusual[i], values[i]) for i in samples])
        auroc = roc_auc_score(unusual, values)
        groups = (mean(values[~unusual]), mean(values[unusual]))
        print(f"| {name} | {groups[0]} | {groups[1]} | {auroc:.3f} ± {spread:.3f} |")


def mean(values):
    return f"{values.mean():.3f} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    main()
