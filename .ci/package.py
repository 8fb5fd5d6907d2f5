"""The package as its users get it: what it holds, and that it runs where there is nothing else.

    make package

builds the wheel and the sdist, installs the wheel in an empty environment, and ends with this
script: `python .ci/package.py DIST ENVIRONMENT`.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A file that .gitignore names by mistake would be missed by both lists that are compared.
NEEDED = {
    "vdm/py.typed",
    "vdm/run/data/digits_test.txt",
    "vdm/run/demo/model.safetensors",
    "vdm/run/demo/evaluation_test.npz",
    "vdm/run/report/templates/page.css",
    "vdm/run/report/templates/page.html.j2",
}
FLAGS = (
    "--config.train.num_steps=10",
    "--config.train.batch_size=8",
    "--config.train.log_every=5",
    "--config.model.network.num_blocks=1",
    "--config.model.network.attention=none",
)


def main(dist: pathlib.Path, environment: pathlib.Path) -> None:
    """Check both files in `dist`, then the program that was installed from one of them."""
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    check_contents(sdist.name, in_sdist(sdist), {f for f in kept() if not f.startswith(".ci/")})
    check_contents(wheel.name, in_wheel(wheel), {f for f in kept() if f.startswith("vdm/")})
    with tempfile.TemporaryDirectory() as folder:
        check_program(environment.resolve(), pathlib.Path(folder))


def kept() -> set[str]:
    """Return the files of the repository, those not yet added to it as well."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if (ROOT / name).is_file()}


def in_sdist(path: pathlib.Path) -> set[str]:
    """Return the files of an sdist, without its folder and without its metadata."""
    with tarfile.open(path) as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
    return {name.partition("/")[2] for name in files} - {"PKG-INFO"}


def in_wheel(path: pathlib.Path) -> set[str]:
    """Return the files of a wheel, without its metadata."""
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def check_contents(name: str, files: set[str], expected: set[str]) -> None:
    """Exit unless a package holds the expected files, all of them and no others."""
    missing, others = sorted((expected | NEEDED) - files), sorted(files - expected)
    if missing or others:
        sys.exit(f"{name} lacks {missing} and holds {others}, which it should not")
    print(f"{name}: {len(files)} files")


def check_program(environment: pathlib.Path, folder: pathlib.Path) -> None:
    """Train ten steps, report them, and sample the packaged run, in a folder with nothing else."""
    hidden = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def call(program: str, *words: str) -> str:
        command = [str(environment / "bin" / program), *words]
        return subprocess.run(
            command, cwd=folder, env=hidden, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    module = call("python", "-c", "import vdm; print(vdm.__file__)").strip()
    if not pathlib.Path(module).is_relative_to(environment):
        sys.exit(f"vdm was imported from {module}, not from {environment}")
    call("vdm", "--help")
    shutil.copy(ROOT / "experiments/digits.py", folder / "config.py")
    call("vdm", "train", "--config=config.py", "--workdir=run", *FLAGS)
    call("vdm", "report", "--workdir=run", "--num=0")
    steps = [json.loads(line)["step"] for line in (folder / "run/metrics.jsonl").open()]
    if steps[-1] != 10 or not (folder / "run/report.html").is_file():
        sys.exit(f"ten steps were asked for: the metrics are of {steps}")
    call("vdm", "demo", "--workdir=demo")
    call("vdm", "sample", "--workdir=demo", "--num=4", "--steps=5", "--out=samples.npy")
    print(f"{module} took ten steps and reported them, and sampled the packaged run")


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
