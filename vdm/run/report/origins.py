"""The sections of a report on the origin of a run: data, time, hardware, versions, config."""

import itertools

from vdm.run import config as configs
from vdm.run.evaluation.record import Taken
from vdm.run.report import curves, words
from vdm.run.report.layout import Note, Part, Section, Table
from vdm.run.report.read import Run
from vdm.run.report.restored import Restored
from vdm.run.workdir.sessions import SessionRecord


def made_of(run: Run, restored: Restored | str) -> Section:
    """Return data, parameters, time, hardware and versions."""
    rows = [*_data(run), *_size(restored), *_time(run)]
    parts: list[Part] = [Table("", ("", ""), tuple(rows), numeric=False)]
    if run.phases:
        parts.append(_phases(run))
    if isinstance(restored, str):
        parts.append(Note(f"The checkpoint cannot be read: {restored}."))
    if not run.sessions:
        parts.append(Note("The versions and the hardware of training were not recorded."))
    return Section("made", "Data, versions and hardware", tuple(parts))


def config(run: Run) -> Section:
    """Return every value of the config, folded."""
    flat = configs.flatten(configs.to_dict(run.config))
    rows = tuple((key, words.plain(value)) for key, value in sorted(flat.items()))
    title = f"All {len(rows)} values"
    table = Table(title, ("key", "value"), rows, numeric=False, folded=True)
    return Section("config", "Config", (table,))


def sessions(run: Run) -> list[SessionRecord]:
    """Return the sessions that took at least one step."""
    return [one for one in run.sessions if one.to_step > one.from_step]


def seconds(run: Run) -> float | None:
    """Return the time that training took, over all of its sessions; None where it is not known.

    For runs of early versions it follows from the speed in their metrics.
    """
    if going := sessions(run):
        return sum(one.seconds for one in going)
    return float(curves.seconds(run)[-1]) if run.metrics else None


def _phases(run: Run) -> Table:
    rows = []
    for before, phase in itertools.pairwise(run.phases):
        for key, (old, new) in configs.differences(before.config, phase.config).items():
            rows.append((f"{phase.step:,}", key, words.plain(old), words.plain(new)))
    title = (
        "The run was resumed with another config: each change, and the step from which it holds."
    )
    return Table(title, ("from step", "key", "before", "after"), tuple(rows), numeric=False)


def _data(run: Run) -> list[tuple[str, str]]:
    rows = [("data set", run.config.data.name)]
    if run.data is not None:
        rows.append(("version", run.data.version))
        rows.append(
            ("training examples", f"{run.data.num_examples:,} of shape {list(run.data.shape)}")
        )
    if run.config.data.augment != "none":
        rows.append(("augmentation", run.config.data.augment))
    for origin in (result.origin for result in run.results):
        if origin.ids_checksum is not None:
            name = f"checksum of the evaluated {origin.split} examples"
            rows.append((name, origin.ids_checksum))
    return words.each_once(rows)


def _size(restored: Restored | str) -> list[tuple[str, str]]:
    if isinstance(restored, str):
        return []
    rows = [("parameters of the network", f"{restored.network_size:,}")]
    if restored.schedule_size:
        rows.append(("parameters of the schedule", f"{restored.schedule_size:,}"))
    if restored.number_size:
        rows.append(
            ("parameters of the network of the number of points", f"{restored.number_size:,}")
        )
    return [("checkpoint", f"step {restored.trained.step:,}"), *rows]


def _time(run: Run) -> list[tuple[str, str]]:
    rows = []
    going = sessions(run)
    if going:
        count = f" in {len(going)} sessions" if len(going) > 1 else ""
        first = going[0].from_step  # not 0 where an early version, or another code, began
        since = f", from step {first:,} on" if first else ""
        rows.append(("training took", words.duration(seconds(run) or 0.0) + count + since))
    elif run.metrics:
        took = words.duration(seconds(run) or 0.0)
        rows.append(("training took", f"{took}, estimated from the speed in its metrics"))
    if run.sessions:
        shown = going or run.sessions
        on = words.each_once([words.hardware(one.made_with.hardware) for one in shown])
        rows.append(("training ran on", "; ".join(on)))
        using = words.each_once([words.versions(one.made_with.versions) for one in shown])
        rows.append(("versions", "; then ".join(using)))
        rows.append(("begun", f"{shown[0].began:%Y-%m-%d %H:%M %Z}"))
    taken = Taken() if run.evaluation is None else run.evaluation.taken
    if taken.seconds is not None:
        rows.append(("evaluation took", words.duration(taken.seconds)))
    known = words.each_once([r.precision for r in run.results if r.precision is not None])
    if known:
        rows.append(("evaluation multiplied float32", f"precision {' and '.join(known)}"))
    if taken.hardware is not None:
        rows.append(("evaluation ran on", words.hardware(taken.hardware)))
    return rows
