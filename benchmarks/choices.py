"""Bits per dimension on digits at equal steps, for every way to choose and weigh noise levels.

    python benchmarks/choices.py --steps=1000
    python benchmarks/choices.py --steps=4000 --only=linear,sigmoid_law,learned,adaptive

Each choice is experiments/digits.py in the size of `make demo` with one thing changed, for
three seeds: same steps, batch, warm-up and rate, and an average of parameters (EMA) whose
half-life is at most a tenth of the run (its decay grows as (1 + n)/(10 + n)). Runs are kept
in runs/choices/ and finished ones are not repeated, so the command may be stopped and started
again, and `--seeds=0`, `--seeds=1` share the work between two processes. The table is of all
the seeds that are there.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil

import numpy as np

import short_runs
from vdm.run import evaluate, train, trained
from vdm.run.system.files import write_json

LINEAR = {"name": "linear", "log_snr_max": 8.0, "log_snr_min": -6.0}
DDPM = tuple(float(beta) for beta in np.linspace(1e-4, 0.02, 1000))


def schedule(name, **arguments):
    return {"model.schedule": {**LINEAR, "name": name, **arguments}}


def head(prediction):
    # Only a fresh ε̂ should be z; the others begin at 0.
    return {"model.prediction": prediction, "model.network.residual": False}


def weighted(name, **arguments):
    return {"objective.weighting": {"name": name, **arguments}}


ADAPTIVE = {"objective.law": {"name": "adaptive"}}
SIGMOID_LAW = {"objective.law": {"name": "sigmoid"}}
CHOICES = {
    # Where to look, all of them for the bound.
    "linear_iid": {"objective.draw": "uniform"},
    "linear": {},
    "linear_stratified": {"objective.draw": "stratified"},
    "cosine": schedule("cosine"),
    "beta_linear": schedule("beta_linear"),
    "flow_matching": schedule("flow_matching"),
    "edm": schedule("edm"),
    "ddpm_chain": {"model.schedule": {"name": "from_betas", "betas": DDPM}},
    "sigmoid_law": SIGMOID_LAW,
    "learned_linear": schedule("learned_linear"),
    "learned": schedule("learned_monotone", learn_ends=False),
    "learned_and_ends": schedule("learned_monotone"),
    "adaptive": ADAPTIVE,
    "adaptive_stratified": ADAPTIVE | {"objective.draw": "stratified"},
    "adaptive_iid": ADAPTIVE | {"objective.draw": "uniform"},
    # What the network says; the bound is the same.
    "v_head": head("v"),
    "v_head_sigmoid_law": head("v") | SIGMOID_LAW,
    "x_head": head("x"),
    "edm_head": head("edm"),
    # Other objectives than the bound; the bound is still what is evaluated.
    "weight_simple": weighted("simple"),
    "weight_v": weighted("v"),
    "weight_v_adaptive": weighted("v") | ADAPTIVE,
    "weight_edm": weighted("edm"),
    "weight_edm_monotone": weighted("edm_monotone"),
    "weight_min_snr": weighted("min_snr"),
    "weight_min_snr_soft": weighted("min_snr", soft=True),
    "weight_p2": weighted("p2"),
    "weight_sigmoid": weighted("sigmoid"),
}


def make_config(choice, seed, steps):
    """The demo's config with one choice made, as a checked value."""
    base = short_runs.read_config(short_runs.DEMO, steps=steps, seed=seed)
    return short_runs.changed(base, CHOICES[choice])


def measure(choice, seed, steps):
    """Train and evaluate one run, unless it is there; returns bpd by kind of parameters."""
    folder = pathlib.Path("runs/choices") / str(steps) / f"{choice}_{seed}"
    result = folder / "bpd.json"
    if not result.exists():
        train.train(make_config(choice, seed, steps), folder)
        bpd = {}
        for kind in trained.PARAMS:
            run = trained.load(folder, kind)
            settings = dataclasses.replace(run.config.evaluate, law="schedule")
            out = folder / kind
            out.mkdir(exist_ok=True)
            record = evaluate.evaluate(run, "test", settings, out)
            bpd[kind] = record["bpd"]["mean"]
            bpd[f"{kind}_train"] = record["results"][1]["bpd"]["mean"]
        write_json(result, bpd)
        shutil.rmtree(folder / "checkpoints")  # eighty of them are gigabytes
    return json.loads(result.read_text())


def row(choice, runs):
    """One line of the table: mean ± standard error over seeds."""
    kinds = ("ema", "raw", "ema_train")
    cells = [short_runs.cell([bpd[kind] for bpd in runs]) for kind in kinds]
    return f"| {choice} | {len(runs)} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(CHOICES), help="choices, comma-separated")
    options = parser.parse_args()
    chosen = options.only.split(",")
    unknown = [choice for choice in chosen if choice not in CHOICES]
    if unknown:
        parser.error(f"unknown choice {unknown[0]!r}; known: {', '.join(CHOICES)}")
    for choice in chosen:  # a mistake in any of them is found before the first hour
        make_config(choice, 0, options.steps)
    for seed in short_runs.seeds(options.seeds):
        for choice in chosen:
            measure(choice, seed, options.steps)

    folder = pathlib.Path("runs/choices") / str(options.steps)
    print(f"\n{options.steps} steps | seeds | EMA | raw | EMA, train subset")
    for choice in chosen:
        done = sorted(folder.glob(f"{choice}_[0-9]*/bpd.json"))
        print(row(choice, [json.loads(path.read_text()) for path in done]))


if __name__ == "__main__":
    main()
