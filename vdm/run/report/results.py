"""The sections of a report on what was measured: bounds and terms, profile, steps."""

from collections.abc import Sequence
from typing import Any

from vdm.run.report import levels, words
from vdm.run.report.layout import Figures, Headline, Note, Part, Section, Table
from vdm.run.report.read import Run

Record = dict[str, Any]
TERMS = ("prior", "reconstruction", "diffusion")


def headline(run: Run) -> Headline | None:
    """Return the figure at the top; None for a run that was not evaluated."""
    record = run.evaluation
    if record is None:
        return None
    bpd = record["bpd"]
    facts = (
        ("data", f"{record['dataset']}, split {record['split']}"),
        ("examples", f"{bpd['n']:,} of {record['num_dims']:,} dimensions"),
        ("bound", words.measure(record)),
        ("parameters", words.params(record)),
        ("step", f"{record['step']:,}"),
    )
    value, _, error = words.with_error(bpd).partition(" ± ")
    note = (
        " Real numbers: it is the density’s, in the data’s own units, and may be negative."
        if run.differential
        else ""
    )
    return Headline(
        value=value,
        error=f"± {error}" if error else "",
        unit="bits per dimension",
        sentence=words.sentence(run, record) + note,
        facts=facts,
    )


def evaluate_command(run: Run, options: str = "") -> str:
    """Return the command that evaluates a run, again by the bounds that it would replace."""
    bounds = words.each_once([*(record["bound"] for record in run.results), "vlb"])
    again = f" --bound={','.join(bounds)}" if len(bounds) > 1 else ""
    return f"vdm evaluate --workdir={words.quoted(run.workdir)}{again}{options}"


def bounds(run: Run) -> Section:
    """Return every result of the evaluation with its terms."""
    parts: list[Part] = []
    if not run.results:
        parts.append(Note("Not evaluated yet.", evaluate_command(run)))
    variational = [record for record in run.results if record["bound"] == "vlb"]
    if variational:
        parts.append(_variational(variational))
    if flows := [record for record in run.results if record["bound"] == "ode"]:
        parts.append(_flows(flows))
    if run.results and not variational:
        parts.append(Note("The variational bound was not evaluated.", evaluate_command(run)))
    if run.evaluation is not None and "i_mmse" in run.evaluation:
        parts.append(_i_mmse(run.evaluation["i_mmse"]))
    return Section("bounds", "Bits per dimension", tuple(parts))


def information(run: Run) -> Section:
    """Return the profile of the error over λ."""
    every = [r for r in run.results if "profile" in r]
    # Clipped ones differ too little to be told apart; they are shown where there are no others.
    profiled = [r for r in every if not r.get("clip_denoised")] or every
    if not profiled:
        text = "No profile over λ was recorded: it comes with the variational bound at T = ∞."
        parts: tuple[Part, ...] = (Note(text, evaluate_command(run, " --num_steps=inf")),)
    else:
        named = [(_of_profile(record), record["profile"]) for record in profiled]
        parts = (Figures(levels.profile(named)),)
    return Section("information", "Where the bits are", parts)


def steps(run: Run) -> Section:
    """Return the bound against the number of steps."""
    sweeps = sweeps_of(run)
    if not sweeps:
        text = "The bound was not evaluated at several numbers of steps."
        parts: tuple[Part, ...] = (
            Note(text, evaluate_command(run, " --num_steps=10,100,1000,inf")),
        )
    else:
        parts = (Figures((levels.steps(sweeps),)),)
    return Section("steps", "The price of few steps", parts)


def sweeps_of(run: Run) -> list[tuple[str, list[Record]]]:
    """Return the results at several T by what they have in common, the evaluated split's alone."""
    if run.evaluation is None:
        return []
    split = run.evaluation["split"]
    found = [r for r in run.results if r["bound"] == "vlb" and r["split"] == split]
    named = [
        ("variational bound", [r for r in found if not r.get("clip_denoised")]),
        ("x̂ clipped", [r for r in found if r.get("clip_denoised")]),
    ]
    return [
        (name, sweep)
        for name, sweep in named
        if len(sweep) > 1 and any(r["num_steps"] != "inf" for r in sweep)
    ]


def _variational(records: Sequence[Record]) -> Table:
    predicted = any("diffusion_by_steps_law" in record for record in records)
    headings = ("split", "n", "T", "bpd", *TERMS, *(["by 1/T law"] if predicted else []))
    rows = []
    for record in records:
        steps = "∞" if record["num_steps"] == "inf" else f"{record['num_steps']:,}"
        law = "diffusion_by_steps_law" in record
        rows.append(
            (
                record["split"],
                f"{record['bpd']['n']:,}",
                steps + (", x̂ clipped" if record.get("clip_denoised") else ""),
                words.with_error(record["bpd"]),
                *(words.with_error(record["terms"][name]) for name in TERMS),
                *([words.number(levels.by_steps_law(record), 4) if law else ""] * predicted),
            )
        )
    subset = " The train split is represented by as many of its examples, evenly spaced."
    text = "The variational bound and its three terms in bits per dimension, ± standard error."
    splits = {record["split"] for record in records}
    return Table(text + subset * (len(splits) > 1), headings, tuple(rows))


def _flows(records: Sequence[Record]) -> Table:
    rows = tuple(
        (
            record["split"],
            f"{record['bpd']['n']:,}",
            (record.get("dequantisation") or "none").replace("_", "-"),
            f"{record['num_samples']:,}",
            words.with_error(record["bpd"]),
            f"{record['nfe']['mean']:,.0f} (at most {record['nfe']['max']:,.0f})",
        )
        for record in records
    )
    integers = any(record.get("dequantisation") for record in records)
    tight = " K draws of an integer’s place in its bin tighten its bound." if integers else ""
    return Table(
        "The likelihood under the probability-flow ODE, bits per dimension ± standard error."
        + tight,
        ("split", "n", "dequantisation", "K", "bpd", "evaluations a draw"),
        rows,
    )


def _i_mmse(found: Record) -> Table:
    rows = (
        ("between the ends of λ", words.number(found["between"], 4)),
        ("below λ(1)", words.number(found["below"], 4)),
        ("together", words.number(found["bpd"], 4)),
        ("above λ(0), left out, at most", words.number(found["above_at_most"], 4)),
    )
    return Table(
        "The same likelihood by I-MMSE, with neither prior nor decoder, bits per dimension.",
        ("", "bpd"),
        rows,
    )


def _of_profile(record: Record) -> str:
    clipped = ", clipped" if record.get("clip_denoised") else ""
    return f"{record['split']}{clipped}"
