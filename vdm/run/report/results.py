"""The sections of a report on the results: bounds and terms, profile, steps."""

from collections.abc import Sequence

import numpy as np

from vdm.run.evaluation.record import TERMS, IMmse, OdeResult, Origin, Paths, VlbResult
from vdm.run.report import levels, words
from vdm.run.report.layout import Figure, Figures, Headline, Note, Part, Section, Table
from vdm.run.report.read import Run
from vdm.run.workdir.chains import Kept

PLAIN = "variational bound"


def headline(run: Run) -> Headline | None:
    """Return the main number; None for a run that was not evaluated."""
    result = run.headline
    if result is None:
        return None
    bpd, origin = result.bpd, result.origin
    facts = (
        ("data", f"{origin.dataset}, split {origin.what}"),
        ("examples", f"{bpd.n:,} of {_size(origin)}"),
        ("bound", words.measure(result)),
        ("parameters", words.params(origin)),
        ("step", f"{origin.step:,}"),
    )
    value, _, error = words.with_error(bpd.mean, bpd.sem).partition(" ± ")
    note = (
        " For real numbers this is minus a log-density in the units of the data; it may be "
        "negative."
        if run.differential
        else ""
    )
    return Headline(
        value=value,
        error=f"± {error}" if error else "",
        unit="bits per dimension",
        sentence=words.sentence(run, result) + note,
        facts=facts,
    )


def _size(origin: Origin) -> str:
    """Return in words how large examples are, and in what sense sets have a density."""
    if origin.mean_dims is None:
        return f"{origin.num_dims:,} dimensions"
    return f"{origin.mean_dims:,.1f} dimensions on average, {origin.order} sets of points"


def evaluate_command(run: Run, options: str = "") -> str:
    """Return the command that evaluates a run, with the bounds of the results it would replace."""
    bounds = words.each_once([*(result.bound for result in run.results), "vlb"])
    again = f" --bound={','.join(bounds)}" if len(bounds) > 1 else ""
    return f"vdm evaluate --workdir={words.quoted(run.workdir)}{again}{options}"


def bounds(run: Run) -> Section:
    """Return every result of the evaluation with its terms."""
    parts: list[Part] = []
    if not run.results:
        parts.append(Note("Not evaluated yet.", evaluate_command(run)))
    variational = _vlb_results(run)
    if variational:
        parts.append(_variational(variational))
    if of_paths := [(r, r.paths) for r in variational if r.paths is not None]:
        parts.append(_of_paths(of_paths))
    if odes := [result for result in run.results if isinstance(result, OdeResult)]:
        parts.append(_odes(odes))
    if run.results and not variational:
        parts.append(Note("The variational bound was not evaluated.", evaluate_command(run)))
    if isinstance(run.headline, VlbResult) and run.headline.i_mmse is not None:
        parts.append(_i_mmse(run.headline.i_mmse))
    return Section("bounds", "Bits per dimension", tuple(parts))


def information(run: Run, placed: Sequence[Kept] | str) -> Section:
    """Return the profile of the error over λ, with the levels of the chains that were placed.

    They are the chains of the run's parameters, or in words why they cannot be read.
    """
    every = [(r, r.profile) for r in _vlb_results(run) if r.profile is not None]
    # Clipped ones differ too little to be distinguished; they are shown if there are no others.
    profiled = [one for one in every if not one[0].clip_denoised] or every
    if not profiled:
        text = "No profile over λ was recorded: it comes with the variational bound at T = ∞."
        parts: tuple[Part, ...] = (Note(text, evaluate_command(run, " --num_steps=inf")),)
    else:
        named = [(_of_profile(result), profile) for result, profile in profiled]
        figures: tuple[Figure, ...] = levels.profile(named)
        if placed and not isinstance(placed, str):
            levels_of = [(_of_kept(kept), np.asarray(kept.chain.log_snrs)) for kept in placed]
            figures += (levels.placed(profiled[0][1], levels_of),)
        parts = (Figures(figures),)
    if isinstance(placed, str):
        parts += (Note(f"The chains of few steps cannot be read: {placed}"),)
    return Section("information", "Where the bits are", parts)


def steps(run: Run) -> Section:
    """Return the bound against the number of steps."""
    sweeps = sweeps_of(run)
    if not sweeps:
        text = "The bound was evaluated at fewer than two numbers of steps."
        parts: tuple[Part, ...] = (
            Note(text, evaluate_command(run, " --num_steps=10,100,1000,inf")),
        )
    else:
        parts = (Figures((levels.steps(sweeps),)),)
    return Section("steps", "The price of few steps", parts)


def sweeps_of(run: Run) -> list[tuple[str, list[VlbResult]]]:
    """Return the named results at several T, of the evaluated split.

    Those of fitted chains, of whatever variances, are one sweep. In continuous time a chain is the
    model itself: their limit is that of the bound with the same clipping, or else of any.
    """
    if run.headline is None:
        return []
    split = run.headline.origin.split
    found = [r for r in _vlb_results(run) if r.origin.split == split]
    plain = [r for r in found if r.chain is None]
    fitted = [r for r in found if r.chain is not None]
    limits = [r for r in plain if r.continuous]
    if fitted:
        limits.sort(key=lambda r: r.clip_denoised != fitted[0].clip_denoised)
    named = [
        (PLAIN, [r for r in plain if not r.clip_denoised]),
        ("x̂ clipped", [r for r in plain if r.clip_denoised]),
        (_of_chains(fitted), [*fitted, *limits[:1]]),
    ]
    return [
        (name, sweep)
        for name, sweep in named
        if len(sweep) > 1 and any(not r.continuous for r in sweep)
    ]


def _vlb_results(run: Run) -> list[VlbResult]:
    return [result for result in run.results if isinstance(result, VlbResult)]


def _variational(results: Sequence[VlbResult]) -> Table:
    predicted = any(result.by_steps_law is not None for result in results)
    headings = ("split", "n", "T", "bpd", *TERMS, *(["by 1/T law"] if predicted else []))
    rows = []
    for result in results:
        law = "" if result.by_steps_law is None else words.number(result.by_steps_law, 4)
        rows.append(
            (
                result.origin.what,
                f"{result.bpd.n:,}",
                words.steps_of(result),
                *(words.with_error(mean, sem) for mean, sem, _ in (result.bpd, *result.terms)),
                *([law] if predicted else []),
            )
        )
    subset = " Of the train split an equal number of examples was evaluated, evenly spaced."
    text = "The variational bound and its three terms in bits per dimension, ± standard error."
    if any(result.chain for result in results):
        text += " A chain has noise levels and variances of its own, fitted after training."
    splits = {result.origin.split for result in results}
    return Table(text + subset * (len(splits) > 1), headings, tuple(rows))


def _of_paths(found: Sequence[tuple[VlbResult, Paths]]) -> Table:
    rows = tuple(
        (
            result.origin.what,
            words.steps_of(result),
            f"{paths.num_paths:,}",
            *(words.with_error(e.mean, e.sem) for e in (result.bpd, paths.bpd, paths.looser)),
        )
        for result, paths in found
    )
    return Table(
        "How loose is the bound? The importance bound of K whole paths lies between the "
        "variational bound and −log P(x) of the same steps, in the mean over paths. The last "
        "column is how much looser the variational bound is by the same paths, ± standard error "
        "of this difference.",
        ("split", "T", "K", "bpd", "by K paths", "looser by"),
        rows,
    )


def _odes(results: Sequence[OdeResult]) -> Table:
    rows = tuple(
        (
            result.origin.what,
            f"{result.bpd.n:,}",
            (result.dequantisation or "none").replace("_", "-"),
            f"{result.num_samples:,}",
            words.with_error(result.bpd.mean, result.bpd.sem),
            f"{result.nfe.mean:,.0f} (at most {result.nfe.max:,.0f})",
        )
        for result in results
    )
    integers = any(result.dequantisation for result in results)
    tight = (
        " More draws K of the position of an integer in its bin make the bound tighter."
        if integers
        else ""
    )
    return Table(
        "The likelihood under the probability-flow ODE, bits per dimension ± standard error."
        + tight,
        ("split", "n", "dequantisation", "K", "bpd", "evaluations per draw"),
        rows,
    )


def _i_mmse(found: IMmse) -> Table:
    rows = (
        ("between the ends of λ", words.number(found.between, 4)),
        ("below λ(1)", words.number(found.below, 4)),
        ("together", words.number(found.bpd, 4)),
        ("above λ(0): left out, at most", words.number(found.above_at_most, 4)),
    )
    return Table(
        "The negative log-likelihood by I-MMSE, without prior and decoder, in bits per dimension.",
        ("", "bpd"),
        rows,
    )


def _of_chains(fitted: Sequence[VlbResult]) -> str:
    names = words.each_once(r.chain_name for r in fitted)
    clipped = ", x̂ clipped" if any(r.clip_denoised for r in fitted) else ""
    return (names[0] if len(names) == 1 else "fitted chains") + clipped


def _of_kept(kept: Kept) -> str:
    variance = "" if kept.variance == "none" else f", {kept.variance}"
    return f"T = {kept.chain.num_steps:,}{variance}"


def _of_profile(result: VlbResult) -> str:
    return f"{result.origin.what}{', clipped' if result.clip_denoised else ''}"
