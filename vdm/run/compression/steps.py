"""Which steps a file is compressed with: those of a chain of the run, or even ones."""

import pathlib

from vdm.model import Params
from vdm.run.config import CompressConfig
from vdm.run.errors import UserError
from vdm.run.workdir import chains
from vdm.run.workdir.chains import Kept


def choose(
    workdir: pathlib.Path,
    params: Params,
    settings: CompressConfig,
    *,
    exactly: bool,
    required: bool,
) -> tuple[Kept | None, str]:
    """Return the chain to compress with, None for even steps, and a line that says which.

    It is the chain of `settings.num_steps` steps if they are `exactly` what is asked for, and else
    the longest that has no more. Raises UserError where there is none and a chain is `required`.
    """
    most, even = settings.num_steps, f"{settings.num_steps} even steps"
    if not settings.chain:
        return None, even
    own = chains.steps(workdir, params)
    fitting = [num for num in own if num == most or (num < most and not exactly)]
    if fitting or required:
        found = chains.find(workdir, params, max(fitting, default=most))
        line = f"the chain of {found.chain.num_steps} steps, variance {found.variance}"
        other = "" if exactly else f" (--no-chain: {even}, slower, and it may be a shorter file)"
        return found, line + other
    if not own and chains.index(workdir):
        return None, f"{even}: the chains of {workdir} belong to another checkpoint"
    if own:
        return None, f"{even}: there are chains of {', '.join(map(str, own))} steps"
    return None, f"{even}: there is no chain (`{chains.COMMAND}` fits one)"


def needed(workdir: pathlib.Path, checksum: bytes, file: pathlib.Path) -> Kept:
    """Return the chain that a compressed file needs; raises UserError where it is missing."""
    there = sorted(path.stem for path in (workdir / chains.FOLDER).glob(f"*{chains.ENDING}"))
    if checksum.hex() not in there:
        raise UserError(
            f"{file} was compressed with the chain {checksum.hex()}, which {workdir} does not "
            f"have: got {', '.join(there) or 'no chain'}"
        )
    return chains.by_checksum(workdir, checksum)
