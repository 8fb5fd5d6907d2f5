"""Take the last picture of executed notebooks for the README and the guides.

    make pictures

writes into docs/pictures/ what `make notebooks` has left in docs/notebooks/, for every NAME given.
"""

import argparse
import base64
import pathlib

import nbformat

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def last_picture(notebook: nbformat.NotebookNode) -> bytes:
    """Return the last PNG among the outputs, which `notebooks/run.py` has made sure of."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", ())
    ]
    return base64.b64decode(pictures[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME")
    for name in parser.parse_args().names:
        notebook = nbformat.read(DOCS / f"notebooks/{name}.ipynb", as_version=4)
        (DOCS / f"pictures/{name}.png").write_bytes(last_picture(notebook))


if __name__ == "__main__":
    main()
