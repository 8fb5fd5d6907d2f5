"""Parts of the user's own, named in a config as `package.module:Name`.

The module is imported from the current folder, from the folder of the config file, which a workdir
keeps, or from what is installed.
"""

import contextlib
import importlib
import pathlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from vdm.choices import unknown
from vdm.run.errors import UserError

LIBRARY = str(pathlib.Path(__file__).parents[2])
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own(name: str) -> bool:
    """Return whether a name is that of a module's object, and not of a part of this package."""
    return ":" in name or name.startswith("optax.")


def is_own_set(name: str) -> bool:
    """Return whether the name of a data set is that of the user's own function.

    Sets of tensorflow-datasets have a colon before a version, as mnist:3.0.1, and after the name of
    another collection.
    """
    return NAME.fullmatch(name) is not None and not name.startswith("huggingface:")


def split(text: str, known: Collection[str] = ()) -> tuple[str, str]:
    """Return the name and the arguments of a text such as heun:churn=0.2 or module:Name:eta=1.

    A `known` name is one of this package, whatever follows it.
    """
    name, _, rest = text.partition(":")
    inner, _, more = rest.partition(":")
    own = name not in known and bool(inner) and "=" not in inner and "," not in inner
    return (f"{name}:{inner}", more) if own else (name, rest)


def problem(key: str, name: str) -> str | None:
    """Return what is wrong with the form of an own part's name, None if it is one."""
    if NAME.fullmatch(_with_colon(name)):
        return None
    return f"{key} must be a name of this package, or package.module:Name: got {name!r}"


def make_importable(*folders: pathlib.Path) -> None:
    """Let modules in these folders be imported, after all that can be imported already."""
    for folder in (pathlib.Path(), *folders):
        path = str(folder.resolve())
        if path not in sys.path:
            sys.path.append(path)


def load(key: str, name: str) -> Callable[..., Any]:
    """Return the object that a name stands for; raises UserError where there is no such function.

    Whatever error its module raises, the user has to mend it.
    """
    wrong = problem(key, name)
    if wrong is not None:
        raise UserError(wrong)
    module_name, _, attribute = _with_colon(name).partition(":")
    root = module_name.partition(".")[0]
    if len(places := _places(root)) > 1:
        raise UserError(
            f"{key} is {name!r}, but there are several modules {root!r}, of which Python takes one "
            f"for all: {', '.join(map(str, places))}. Rename one, or use a process for each"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UserError(
                f"{key} is {name!r}, but there is no module {error.name!r}: looked for in the "
                f"current folder {pathlib.Path.cwd()}, the folder of the config file, and what is "
                "installed"
            ) from error
        raise _not_imported(key, name, error) from error
    except (Exception, SystemExit) as error:
        raise _not_imported(key, name, error) from error
    if not hasattr(module, attribute):
        public = [word for word in vars(module) if not word.startswith("_")]
        raise UserError(unknown(f"{key}: name in {module_name}", attribute, public or ["nothing"]))
    found = getattr(module, attribute)
    if not callable(found):
        raise UserError(
            f"{key} is {name!r}, which is of type {type(found).__name__}: expected a class or a "
            "function"
        )
    return found


@contextlib.contextmanager
def errors(what: str) -> Iterator[None]:
    """Turn whatever the user's own code raises into a UserError that names its file and line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        text = f"{what} raises {type(error).__name__}: {lines[0]}"
        # The last line of the user's own code on the way.
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            path = pathlib.Path(frame.filename)
            if path.is_file() and not _is_installed(path):
                text += f" ({path.name}, line {frame.lineno})"
                break
        raise UserError(text) from error


def find(key: str, name: str, options: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Return the constructor of a name; raises UserError for one that is neither of the two."""
    if is_own(name):
        return load(key, name)
    if name not in options:
        raise UserError(unknown(key, name, options))
    return options[name]


def _places(root: str) -> list[pathlib.Path]:
    """Return the files of the user's own that a module may be."""
    found: dict[pathlib.Path, None] = {}
    for folder in map(pathlib.Path, sys.path):
        for file in (folder / f"{root}.py", folder / root / "__init__.py"):
            if file.is_file() and not _is_installed(file.resolve()):
                found[file.resolve()] = None
    return list(found)


def _is_installed(path: pathlib.Path) -> bool:
    """Return whether a file belongs to Python, to what is installed with it, or to this library."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    places = {LIBRARY, *map(sysconfig.get_path, names)}
    return any(path.is_relative_to(place) for place in places)


def _not_imported(key: str, name: str, error: BaseException) -> UserError:
    lines = str(error).strip().splitlines() or [""]
    return UserError(
        f"{key} is {name!r}, whose module cannot be imported: {type(error).__name__}: {lines[0]}"
    )


def _with_colon(name: str) -> str:
    """Return optax.contrib:muon for optax.contrib.muon."""
    if ":" in name or "." not in name:
        return name
    module, _, attribute = name.rpartition(".")
    return f"{module}:{attribute}"
