"""The scores of a file on the terminal: their mean, the lowest and the highest, their ranks."""

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vdm.run.evaluation import record
from vdm.run.scoring.ranks import Ranks
from vdm.run.scoring.scores import Scores

SHOWN = 5  # of the lowest and of the highest
MIN_WIDTH = 100
UNUSUAL = 0.05  # a rank below which an example is counted


def show(scores: Scores, names: tuple[str, ...] | None, ranks: list[Ranks], precision: str) -> None:
    """Print the scores in short; a table has the most bits last."""
    console = Console(width=max(Console().width, MIN_WIDTH))
    mean, sem, n = record.estimate(scores.bpd)
    with_error = "" if sem is None else f" ± {sem:.4f}"
    table = Table(title=f"{n} examples: {mean:.4f}{with_error} bits per dimension")
    table.add_column("index" if names is None else "name", overflow="fold")
    for heading in ("bpd", "error", *(f"rank among {one.split}" for one in ranks)):
        table.add_column(heading, justify="right", no_wrap=True)
    order = np.argsort(scores.bpd, kind="stable")
    if n > 2 * SHOWN:
        _add(table, order[:SHOWN], scores, names, ranks)
        table.add_row("...")
        order = order[-SHOWN:]
    _add(table, order, scores, names, ranks)
    console.print(table)
    for line in (*lines(scores, ranks), f"precision of float32: {precision}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _add(
    table: Table,
    index: np.ndarray,
    scores: Scores,
    names: tuple[str, ...] | None,
    ranks: list[Ranks],
) -> None:
    for i in index:
        error = scores.error[i]
        table.add_row(
            Text(str(i) if names is None else names[i]),  # brackets in a name are no markup
            f"{scores.bpd[i]:.4f}",
            "" if np.isnan(error) else f"{error:.4f}",
            *(f"{one.ranks[i]:.4f}" for one in ranks),
        )


def lines(scores: Scores, ranks: list[Ranks]) -> list[str]:
    """Return a line for each split on how many scores are unusual there."""
    return [
        f"{one.split}: {one.bits.mean():.4f} bits per dimension over {len(one.bits)} examples"
        f"{_levels(one)}; {np.sum(one.ranks < UNUSUAL)} of the {len(scores.bpd)} have a rank "
        f"below {UNUSUAL}"
        for one in ranks
    ]


def _levels(ranks: Ranks) -> str:
    if ranks.levels is None:
        return ""
    return f", {ranks.levels} noise level{'s' * (ranks.levels > 1)} each"
