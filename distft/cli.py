"""What every command does around its work: errors for people become one message and an exit code."""

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from distft.errors import EXIT_FAILED, EXIT_OK, ConfigError, DistftError


def run_command(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs `main(argv)` and ends the process: 0 done, 2 wrong config or data, 75 stopped with a checkpoint, 1 else."""
    code = EXIT_OK
    try:
        main(sys.argv[1:])
    except DistftError as error:
        code = error.exit_code
        # Every rank meets the same wrong config; one of them says so.
        if not (isinstance(error, ConfigError) and os.environ.get("RANK", "0") != "0"):
            print(_message(error), file=sys.stderr)
    except KeyboardInterrupt:
        code = EXIT_FAILED
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # comes from a write, which does not know its file
        if not full and (error.errno is None or not error.filename):
            raise
        logging.getLogger("distft").debug("failed", exc_info=True)
        where = f"{error.filename}: " if error.filename else ""
        how = "; free space, then run the same command again" if full else ""
        print(f"error: {where}{error.strerror}{how}", file=sys.stderr)
        code = EXIT_FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: where one rank fails others sit in a collective, and a process group's destructor would wait for it.
    logging.shutdown()
    os._exit(code)


def _message(error: DistftError) -> str:
    problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    if len(problems) == 1:
        return f"error: {problems[0]}"
    return "\n".join([f"error: {len(problems)} problems", *(f"  - {problem}" for problem in problems)])
