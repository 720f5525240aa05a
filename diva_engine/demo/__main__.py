"""`python -m diva_engine.demo build DIR`: the data and the model that a first run needs, without any download."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diva_engine.records import UserError

WARM_UP_STEPS = (
    900  # levels 1 to 3 are solved at 750; of the hard ones, enough is then right now and then to learn from
)
STEPS_HELP = "fewer make a quicker build and a worse model (default: %(default)s)"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m diva_engine.demo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build_command = commands.add_parser("build", help="write data and model into a folder; about two minutes")
    build_command.add_argument("folder", type=Path, metavar="DIR")
    build_command.add_argument("--warm-up-steps", type=int, default=WARM_UP_STEPS, metavar="N", help=STEPS_HELP)
    chosen = parser.parse_args(arguments)
    from diva_engine.demo.build import build  # after the arguments are read: it imports torch and transformers

    try:
        build(chosen.folder, Console(), chosen.warm_up_steps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
