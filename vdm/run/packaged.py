"""The run that comes with the package: the model of `make demo`, trained on handwritten digits."""

import importlib.resources
import pathlib

from vdm.run.errors import UserError
from vdm.run.system.files import new_folder

FOLDER = "demo"


def write(workdir: pathlib.Path) -> list[str]:
    """Copy the run into a new folder and return its files; raises UserError where it exists."""
    if workdir.exists():
        raise UserError(f"{workdir} exists already: expected a new folder")
    with new_folder(workdir) as folder:
        for file in importlib.resources.files("vdm.run").joinpath(FOLDER).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return sorted(path.name for path in folder.iterdir())
