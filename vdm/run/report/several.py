"""The page on several runs, side by side; differences are to the first of them."""

from collections.abc import Sequence

import vdm
from vdm.run import config as configs, views
from vdm.run.evaluation import record
from vdm.run.evaluation.record import TERMS, Origin, Result, VlbResult
from vdm.run.report import compare, curves, levels, origins, pictures, results, samples, words
from vdm.run.report.layout import Figures, Gallery, Note, Page, Part, Picture, Section, Table, Text
from vdm.run.report.levels import Curve
from vdm.run.report.read import Run
from vdm.run.report.restored import Restored, restore
from vdm.run.report.single import evaluated


def page(runs: Sequence[Run], num: int) -> Page:
    """Return the page that compares runs, with `num` samples drawn for each."""
    restored = [restore(run) for run in runs]
    names = [run.name for run in runs]
    return Page(
        title=", ".join(names[:-1]) + f" and {names[-1]}",
        subtitle="Runs compared",
        headline=None,
        sections=(
            _overview(runs, restored),
            _bounds(runs),
            _training(runs),
            _information(runs),
            _schedules(runs, restored),
            _steps(runs),
            _samples(runs, restored, num),
            _config(runs),
        ),
        version=vdm.__version__,
    )


def _overview(runs: Sequence[Run], restored: Sequence[Restored | str]) -> Section:
    rows: list[tuple[str, ...]] = []
    parts: list[Part] = []
    pairings: set[bool] = set()
    first = runs[0]
    for run, found in zip(runs, restored, strict=True):
        result, took = run.headline, origins.seconds(run)
        apart: compare.Difference | str = ""
        if run is not first and result is not None and first.headline is not None:
            apart = compare.difference(run, result, first, first.headline)
            if isinstance(apart, str):
                text = f"No difference is given between {run.name} and {first.name}: {apart}."
                ours = {record.kind(r) for r in run.results}
                shared = any(record.kind(r) in ours for r in first.results)
                below = " The results that both have are compared below." if shared else ""
                parts.append(Text(text + below * apart.startswith("the bounds differ")))
            else:
                pairings.add(apart.paired)
        rows.append(
            (
                run.name,
                "not evaluated" if result is None else _bpd(result),
                "" if isinstance(apart, str) else _said(apart),
                "" if result is None else f"{result.origin.what}: {words.measure(result)}",
                run.config.data.name,
                "" if result is None else f"{result.origin.step:,}{_raw(result.origin)}",
                "" if isinstance(found, str) else f"{found.network_size:,}",
                "" if took is None else words.duration(took),
            )
        )
    for run in runs:
        if run.evaluation is None:
            parts.append(Note(f"{run.name} was not evaluated yet.", results.evaluate_command(run)))
    table = Table(
        f"Bits per dimension ± standard error; the difference is to {first.name}, and below zero "
        "is better." + _how(pairings),
        (
            "run",
            "bpd",
            f"{words.MINUS} {first.name}",
            "bound",
            "data",
            "step",
            "parameters",
            "training took",
        ),
        tuple(rows),
    )
    return Section("overview", "Side by side", (table, *parts))


def _bounds(runs: Sequence[Run]) -> Section:
    """Every result of every run, by bound; differences to the first run that has it."""
    kinds = words.each_once([record.kind(r) for run in runs for r in run.results])
    rows, pairings = [], set()
    for kind in kinds:
        having = [(run, r) for run in runs for r in run.results if record.kind(r) == kind]
        for i, (run, result) in enumerate(having):
            apart: compare.Difference | str = ""
            if i:
                apart = compare.difference(run, result, *having[0])
            if isinstance(apart, compare.Difference):
                pairings.add(apart.paired)
            terms = [""] * len(TERMS)
            if isinstance(result, VlbResult):
                terms = [words.number(term.mean, 4) for term in result.terms]
            rows.append(
                (
                    f"{result.origin.what}: {words.measure(result)}",
                    run.name + _raw(result.origin),
                    _bpd(result),
                    apart if isinstance(apart, str) else _said(apart),
                    *terms,
                )
            )
    if not rows:
        return Section("bounds", "Every bound", (Note("None of the runs was evaluated."),))
    table = Table(
        "Every result of every run, with its terms; the difference is to the first run that has "
        "the same bound of the same split." + _how(pairings),
        ("bound", "run", "bpd", "difference", *TERMS),
        tuple(rows),
    )
    return Section("bounds", "Every bound", (table,))


def _training(runs: Sequence[Run]) -> Section:
    there = [run for run in runs if run.metrics]
    if not there:
        return Section("training", "Training", (Note("None of the runs has metrics."),))
    lines = [evaluated(run) for run in there]
    figures = Figures(tuple(curves.loss(there, by, lines) for by in ("step", "seconds")))
    return Section("training", "Training", (figures, *_without(runs, there, "metrics")))


def _information(runs: Sequence[Run]) -> Section:
    profiled = []
    for run in runs:
        found = [r.profile for r in run.results if isinstance(r, VlbResult) and not r.clip_denoised]
        if of_them := [profile for profile in found if profile is not None]:
            profiled.append((run, of_them[0]))
    there = [run for run, _ in profiled]
    parts: list[Part] = []
    if profiled:
        parts.append(Figures(levels.profile([(run.name, found) for run, found in profiled])))
    return Section(
        "information", "Where the bits are", (*parts, *_without(runs, there, "profile over λ"))
    )


def _schedules(runs: Sequence[Run], restored: Sequence[Restored | str]) -> Section:
    there = [(run, r) for run, r in zip(runs, restored, strict=True) if not isinstance(r, str)]
    parts: list[Part] = []
    if there:
        lines = [Curve(run.name, r.times, r.log_snr) for run, r in there]
        laws = [Curve(run.name, r.log_snrs, r.density) for run, r in there]
        parts.append(Figures((levels.schedule(lines, learned=False), levels.law(laws))))
    notes = [
        Note(f"The checkpoint of {run.name} cannot be read: {r}.")
        for run, r in zip(runs, restored, strict=True)
        if isinstance(r, str)
    ]
    return Section("schedule", "Schedules and noise levels", (*parts, *notes))


def _steps(runs: Sequence[Run]) -> Section:
    there = [(run, results.sweeps_of(run)) for run in runs]
    plain = [(run, dict(sweeps).get(results.PLAIN)) for run, sweeps in there]
    named = [(run, sweep) for run, sweep in plain if sweep is not None]
    parts: list[Part] = []
    if named:
        parts.append(Figures((levels.steps([(run.name, sweep) for run, sweep in named]),)))
    having = [run for run, _ in named]
    return Section(
        "steps", "The price of few steps", (*parts, *_without(runs, having, "sweep over T"))
    )


def _samples(runs: Sequence[Run], restored: Sequence[Restored | str], num: int) -> Section:
    parts: list[Part] = []
    rows: list[tuple[str, tuple[Picture, ...]]] = []
    drawn: list[tuple[str, samples.Drawn]] = []
    for run, found in zip(runs, restored, strict=True):
        if isinstance(found, str):
            continue
        one = samples.draw(run, found, num)
        if isinstance(one, Note):
            parts.append(Note(f"{run.name}: {one.text}", one.command))
            continue
        drawn.append((run.name, one))
        num_levels, shape = found.trained.model.likelihood.levels, found.trained.shape
        if views.has_picture(shape):
            shown = views.of(one.x[: pictures.MOST_CELLS], views.ends(one.x, num_levels))
            rows.append(
                (
                    run.name,
                    tuple(
                        pictures.picture(view, f"sample {i + 1} of {run.name}")
                        for i, view in enumerate(shown)
                    ),
                )
            )
    if rows:
        seeds = {run.config.sample.seed for run in runs}
        same = ", each column from the same seed" if len(seeds) == 1 else ""
        text = f"Samples by each run’s own sampler{same}."
        parts.insert(0, Gallery(text, tuple(rows)))
    points = [(f"samples of {name}", one.x) for name, one in drawn if one.x.shape[1:] == (2,)]
    if points:
        parts.append(Figures(levels.scatter(points)))
    parts += _distances(drawn)
    return Section("samples", "Samples", tuple(parts))


def _distances(drawn: Sequence[tuple[str, samples.Drawn]]) -> list[Part]:
    found: list[tuple[str, samples.Neighbours]] = []
    parts: list[Part] = []
    for name, one in drawn:
        if isinstance(one.neighbours, Note):
            parts.append(Note(f"{name}: {one.neighbours.text}"))
        else:
            found.append((name, one.neighbours))
    versions = {one.training.version for _, one in found}
    if len(versions) == 1:
        parts.append(Figures((samples.distance_figure(found),)))
    elif found:
        parts.append(Note("Distances are not compared: the data sets are not the same."))
    return parts


def _config(runs: Sequence[Run]) -> Section:
    flat = [configs.flatten(configs.to_dict(run.config)) for run in runs]
    differences = compare.config_differences(flat)
    if not differences:
        return Section("config", "Config", (Note("The configs are the same."),))
    same = len({key for values in flat for key in values}) - len(differences)
    table = Table(
        f"The values that differ; the other {same} are the same.",
        ("key", *(run.name for run in runs)),
        tuple((key, *values) for key, values in differences),
        numeric=False,
    )
    return Section("config", "Config", (table,))


def _raw(origin: Origin) -> str:
    """Mark a result whose parameters are not the averaged ones."""
    return "" if origin.averaged else " (raw parameters)"


def _bpd(result: Result) -> str:
    return words.with_error(result.bpd.mean, result.bpd.sem)


def _said(apart: compare.Difference) -> str:
    sign = "+" if apart.mean > 0 else ""
    found = words.with_error(apart.mean, apart.sem)
    return f"{sign}{found}" + ("" if apart.paired else " (unpaired)")


def _how(pairings: set[bool]) -> str:
    """Return how the standard errors of differences were computed."""
    paired = " Differences are paired: example by example, on the same examples."
    unpaired = (
        " Unpaired: the examples differ, or their numbers were not kept; the error is then that "
        "of two independent means."
    )
    return paired * (True in pairings) + unpaired * (False in pairings)


def _without(runs: Sequence[Run], having: Sequence[Run], what: str) -> list[Part]:
    return [Note(f"{run.name} has no {what}.") for run in runs if run not in having]
