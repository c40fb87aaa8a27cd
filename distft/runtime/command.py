"""What every command does around its work: errors for people become one message and an exit code."""

import errno
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from distft.errors import EXIT_FAILED, EXIT_OK, ConfigError, DistftError

EXIT_UNREAD = 128 + signal.SIGPIPE
"""A shell's own for a program that wrote to a reader that was gone."""


def run_command(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs `main(argv)` and ends the process: 0 done, 2 wrong config or data, 75 stopped with a checkpoint, 1 else."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        # In an ASCII locale whose UTF-8 mode is switched off, no path with other letters can be opened at all.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    leave(exit_code(lambda: main(sys.argv[1:])))


def exit_code(work: Callable[[], object]) -> int:
    """Runs `work()`; prints what went wrong, and returns the exit code that says so."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Slurm log in an ASCII locale must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        work()
    except DistftError as error:
        # Every rank meets the same wrong config; one of them says so.
        others = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0"
        if not (isinstance(error, ConfigError) and others):
            print(_message(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_FAILED
    except BrokenPipeError:
        if not _reader_is_gone():  # of a socket, say
            raise
        return EXIT_UNREAD
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # comes from a write, which does not know its file
        if not full and (error.errno is None or not error.filename):
            raise
        logging.getLogger("distft").debug("failed", exc_info=True)
        where = f"{error.filename}: " if error.filename else ""
        how = "; free space, then run the same command again" if full else ""
        print(f"error: {where}{error.strerror}{how}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def leave(code: int) -> NoReturn:
    """Ends the process. Not sys.exit: where one rank fails others sit in a collective, and a process group's destructor
    would wait for it."""
    _reader_is_gone()  # a run that is done is done, whoever looks
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)


def _reader_is_gone() -> bool:
    """Whether what reads the output has what it wanted, as in `--help | head -1`; then the rest goes nowhere."""
    try:
        out = sys.stdout.fileno()
    except (OSError, ValueError):  # a stream in memory
        return False
    poll = select.poll()
    poll.register(out, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return True


def _message(error: DistftError) -> str:
    problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    if len(problems) == 1:
        return f"error: {problems[0]}"
    return "\n".join([f"error: {len(problems)} problems", *(f"  - {problem}" for problem in problems)])
