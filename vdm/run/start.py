"""The console script: what needs no model answers at once, before JAX is imported."""

import sys

from vdm.run.outline import COMMANDS, outline


def main() -> int:
    """Run the command of this process's words; returns the exit code."""
    words = sys.argv[1:]
    if words in (["--help"], ["-h"], ["--version"]):
        whole, commands = outline()
        for name, text in COMMANDS.items():
            commands.add_parser(name, help=text)
        whole.parse_args(words)
    from vdm.run import cli

    return cli.main(words)
