"""Fitting chains of few steps to a trained run, on its training examples."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from vdm import few_steps
from vdm.few_steps.fitting import OF_SETS
from vdm.losses import bits_per_dim
from vdm.run.config import FewStepsConfig, fields, parse
from vdm.run.config.schema import MAX_LEVELS
from vdm.run.errors import UserError
from vdm.run.run import Run, dataset
from vdm.run.system.files import check_writable
from vdm.run.system.progress import Advance, bar
from vdm.run.workdir import chains

SHOW_EVERY = 1.0  # seconds between two messages of a bar


def fit(run: Run, settings: FewStepsConfig, workdir: pathlib.Path) -> list[tuple[str, str]]:
    """Fit a chain for every number of steps, keep them in the workdir, and say what they are.

    All of them share one fit of the variances. Returns a name and a text for each chain: the
    diffusion term on the training examples, in bits per dimension. Raises UserError for settings
    that do not fit the run, a data set that is not at hand, and a folder that cannot be written to.
    """
    fields.check(settings, "few_steps.")
    if run.condition.points is not None and settings.variance not in OF_SETS:
        raise UserError(
            f"points of sets have no places: expected --variance of {', '.join(OF_SETS)}, got "
            f"{settings.variance!r}"
        )
    numbers = parse.parse_chain_steps(settings.num_steps)
    found = dataset(run, "train")
    # Errors before the work, not after.
    check_writable(workdir / chains.FOLDER)
    chains.index(workdir)
    some = np.linspace(0, len(found) - 1, min(settings.num_examples, len(found)))
    part = found.take(some.round().astype(int))
    cond = run.condition.of_examples(part)
    # In full, as the codec is that the chain will serve.
    with jax.default_matmul_precision("highest"), _bars() as advance:
        fitted = few_steps.fit(
            run.model,
            run.params,
            part.x,
            cond,
            variance=settings.variance,
            key=jax.random.key(np.uint32(settings.seed)),
            clip_denoised=settings.clip_denoised and run.model.likelihood.bounds is not None,
            num_levels=min(MAX_LEVELS, max(settings.num_levels, 2 * max(numbers) + 1)),
            batch_size=settings.batch_size,
            head_steps=settings.head_steps,
            advance=advance,
        )
    if not np.all(np.isfinite(fitted.costs[np.triu_indices(len(fitted.costs), 1)])):
        raise UserError(
            f"the error of step {run.step} on its training examples is not finite: a chain cannot "
            "be fitted to it"
        )
    lines = []
    for num_steps in numbers:
        made = few_steps.place(fitted, num_steps)
        chains.write(
            workdir,
            made,
            settings.variance,
            params=run.params,
            step=run.step,
            kind=run.kind,
            num_examples=len(part.x),
        )
        _, cost = few_steps.best_steps(fitted.costs, num_steps)
        # The cost of sets is that of a point.
        num_dims = found.num_dims if found.points is None else found.shape[-1]
        bpd = float(bits_per_dim(np.asarray([cost]), num_dims)[0])
        text = f"diffusion term {bpd:.4f} bits per dimension on the training examples"
        lines.append((f"{num_steps} steps, variance {settings.variance}", text))
    return lines


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield advance(what, done, total), which shows one bar after the other."""
    with contextlib.ExitStack() as stack:
        shown: dict[str, Advance] = {}
        began = last = 0.0

        def advance(what: str, done: int, total: int) -> None:
            nonlocal began, last
            now = time.monotonic()
            if what not in shown:  # the first one is compiled, and has no rate
                stack.close()
                shown[what] = stack.enter_context(bar(what, total))
                began = now
            elif done == total or now > last + SHOW_EVERY:
                shown[what](done, f"{(done - 1) / max(now - began, 1e-3):.1f} a second")
                last = now

        yield advance
