"""From workdirs to a page: read, drawn, and written as one file."""

import functools
import pathlib
from collections.abc import Sequence

import jinja2

from vdm.run.errors import UserError
from vdm.run.report import read, several, single
from vdm.run.report.layout import Page
from vdm.run.report.svg import NUM_SERIES
from vdm.run.system.files import check_writable, replacing


def write(workdirs: Sequence[pathlib.Path], out: pathlib.Path | None, num: int) -> pathlib.Path:
    """Write the page on a run, or on several side by side, and return where it is.

    `out` is by default report.html in the workdir, for several runs comparison.html in the current
    folder; `num` samples are drawn from each run. Raises UserError for workdirs without a run, one
    that is named twice, too many of them, and a place that cannot be written to.
    """
    runs = _read(workdirs)
    if out is None:
        one = len(runs) == 1
        out = runs[0].workdir / "report.html" if one else pathlib.Path("comparison.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"a report is an .html file: got {out.name!r}")
    if out.is_dir():
        raise UserError(f"cannot write {out}: it exists already and is not a file")
    check_writable(out.parent)  # before the work, not after
    page = single.page(runs[0], num) if len(runs) == 1 else several.page(runs, num)
    with replacing(out) as temporary:
        temporary.write_text(render(page), encoding="utf-8")
    return out


def render(page: Page) -> str:
    """Return the page as HTML; what comes from a run is escaped."""
    return _templates().get_template("page.html.j2").render(page=page)


def _read(workdirs: Sequence[pathlib.Path]) -> list[read.Run]:
    if len(workdirs) > NUM_SERIES:
        raise UserError(f"at most {NUM_SERIES} runs are compared on a page: got {len(workdirs)}")
    resolved = [path.resolve() for path in workdirs]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise UserError(f"{workdirs[i]} is named twice: expected different workdirs")
    names = [path.name for path in resolved]
    unique = len(set(names)) == len(names)
    return [
        read.read(path, name if unique else str(path))
        for path, name in zip(workdirs, names, strict=True)
    ]


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vdm.run.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
