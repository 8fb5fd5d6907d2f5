"""The phases of a run: from which step on it was trained with which config.

A run that was resumed with another rate, batch or number of steps has several, in phases.json. A
run of one phase has no such file: its config is config.json, which always holds the last one.
"""

import pathlib
from typing import NamedTuple

from vdm.run.config import Config, from_dict, to_dict
from vdm.run.errors import UserError
from vdm.run.system import document
from vdm.run.system.document import Place, Whole
from vdm.run.system.files import read_json, write_json

PHASES_FILE = "phases.json"


class Phase(NamedTuple):
    """A config, and the step after which it is the run's."""

    step: int
    config: Config


class _Step(NamedTuple):
    step: Whole


def read(workdir: pathlib.Path) -> tuple[Phase, ...]:
    """Return the phases of a run in order, none where there is only one.

    Raises UserError for a damaged file or one of another form.
    """
    path = workdir / PHASES_FILE
    if not path.exists():
        return ()
    value, place = read_json(path), Place(path)
    if not isinstance(value, list):
        raise place.wrong("a list", value)
    return tuple(_phase(item, place.item(i)) for i, item in enumerate(value))


def begin(workdir: pathlib.Path, before: Config, config: Config, step: int) -> None:
    """Record that a run has this config from a step on; `before` is the one until then."""
    phases = read(workdir) or (Phase(0, before),)
    _write(workdir, (*(one for one in phases if one.step < step), Phase(step, config)))


def back_to(workdir: pathlib.Path, step: int) -> None:
    """Record that a run has resumed from a step: what came later is taken with the last config."""
    phases = read(workdir)
    if phases and phases[-1].step > step:
        begin(workdir, phases[0].config, phases[-1].config, step)


def _write(workdir: pathlib.Path, phases: tuple[Phase, ...]) -> None:
    if len(phases) == 1:  # as if there had been no other
        (workdir / PHASES_FILE).unlink(missing_ok=True)
        return
    plain = [{"step": one.step, "config": to_dict(one.config)} for one in phases]
    write_json(workdir / PHASES_FILE, plain)


def _phase(value: object, place: Place) -> Phase:
    step = document.read(_Step, value, place).step
    try:
        return Phase(step, from_dict(value.get("config") if isinstance(value, dict) else None))
    except UserError as error:
        raise UserError(f"{place.path}: {place.at('config').key}: {error}") from error
