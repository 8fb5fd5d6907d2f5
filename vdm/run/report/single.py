"""The page on one run."""

import vdm
from vdm.run import views
from vdm.run.evaluation.record import VlbResult
from vdm.run.report import curves, levels, origins, pictures, results, samples
from vdm.run.report.layout import Figures, Note, Page, Part, Section
from vdm.run.report.levels import Curve
from vdm.run.report.read import Run
from vdm.run.report.restored import Restored, chains_of, restore


def page(run: Run, num: int) -> Page:
    """Return the page on a run, with `num` samples drawn for it; it says what is missing."""
    restored = restore(run)
    return Page(
        title=run.name,
        subtitle=f"{run.config.data.name}, a variational diffusion model",
        headline=results.headline(run),
        sections=(
            results.bounds(run),
            training(run),
            results.information(run, chains_of(run, restored)),
            schedule(run, restored),
            results.steps(run),
            _samples(run, restored, num),
            origins.made_of(run, restored),
            origins.config(run),
        ),
        version=vdm.__version__,
    )


def training(run: Run) -> Section:
    """Return the curves of training."""
    if not run.metrics:
        text = (
            "No metrics: the parameters were imported, or training has not reached its first "
            "record."
        )
        parts: tuple[Part, ...] = (Note(text),)
    else:
        found = [
            curves.loss([run], "step", [evaluated(run)]),
            curves.validation(run),
            curves.terms(run),
            curves.gradient_norm(run),
            curves.speed(run),
            curves.ends(run),
        ]
        parts = (Figures(tuple(figure for figure in found if figure is not None)),)
    return Section("training", "Training", parts)


def evaluated(run: Run) -> float | None:
    """Return the evaluated bound to compare training curves with: at T = ∞, unclipped."""
    fitting = [
        r.bpd.mean
        for r in run.results
        if isinstance(r, VlbResult) and r.continuous and not r.clip_denoised
    ]
    return fitting[0] if fitting else None


def schedule(run: Run, restored: Restored | str) -> Section:
    """Return the schedule and the law that training draws λ from."""
    if isinstance(restored, str):
        parts: tuple[Part, ...] = (Note("The schedule needs the run’s checkpoint."),)
    else:
        learned = run.config.model.schedule["name"].startswith("learned")
        name = run.config.model.schedule["name"].replace("_", " ")
        parts = (
            Figures(
                (
                    levels.schedule(
                        [Curve(name, restored.times, restored.log_snr)], learned=learned
                    ),
                    levels.law([Curve(_law_name(run), restored.log_snrs, restored.density)]),
                )
            ),
        )
    return Section("schedule", "Schedule and noise levels", parts)


def _law_name(run: Run) -> str:
    name = run.config.objective.law["name"]
    return "along the schedule" if name == "schedule" else name


def _samples(run: Run, restored: Restored | str, num: int) -> Section:
    parts: list[Part] = []
    if isinstance(restored, str):
        parts.append(Note("Samples need the run’s checkpoint."))
    else:
        drawn = samples.draw(run, restored, num)
        parts += [drawn] if isinstance(drawn, Note) else samples.parts(run, restored, drawn)
    if run.grids:
        shape = run.data.shape if run.data is not None else ()
        cells = views.has_picture(shape)
        gallery = pictures.while_training(run.grids, shape, cells=cells)
        parts += [gallery] if gallery is not None else []
    else:
        parts.append(
            Note(
                "No samples were drawn during training; set train.sample_every in the config to "
                "draw some."
            )
        )
    return Section("samples", "Samples", tuple(parts))
