"""Learn a stream of tasks with one continual-learning method; see README.md and `--help`."""

from __future__ import annotations

import sys
from pathlib import Path

from utils.errors import UserError, exit_code, exit_with, termination_interrupts
from utils.options.parse import ConfigError, Resolved, fail, resolve
from utils.storage.files import is_file


def main(argv: list[str]) -> int:
    """Parse, check, build, run, report; returns 0 done, 2 an error of the user, 130 interrupted, 143 terminated."""
    try:
        with termination_interrupts():
            options, folder = read_options(argv)
            from utils.options.checks import check  # slow to import: not for --help or a wrong option
            from utils.run.identity import named_after_checkpoint

            plan = check(named_after_checkpoint(options))
            from utils.run.launch import launch

            launch(plan, folder)
    except UserError as error:
        return fail(error)
    except KeyboardInterrupt as error:
        if not error.args:  # else it was logged how the run is resumed
            print("interrupted before the run began; give the same command again", file=sys.stderr)
        return exit_code(error)
    return 0


def read_options(argv: list[str]) -> tuple[Resolved, Path | None]:
    """The options of a new run, or those of the run to be resumed and its folder."""
    options = resolve(argv)
    if options.config.resume is None:
        return options, None
    extra = sorted(name for name, source in options.sources.items() if source.startswith("--") and name != "resume")
    folder = Path(options.config.resume)
    problems = [f"{name}: cannot be changed in a resumed run; leave it out" for name in extra]
    if not is_file(folder / "config.yaml"):
        problems.append(f"resume: {folder}/config.yaml does not exist; expected a run folder")
    if problems:
        raise ConfigError(problems)
    return resolve(["--cfg", str(folder / "config.yaml")]), folder


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
