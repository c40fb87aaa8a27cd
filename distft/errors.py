"""The errors people meet, and the exit codes they end in."""

from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL: run the same command again to go on


class DistftError(Exception):
    """An error with a message for people: printed without a traceback, ends the process with `exit_code`."""

    exit_code = EXIT_FAILED


class ConfigError(DistftError):
    """The config or the data is wrong. Carries every problem found, one sentence each.

    A sentence reads `key: what must hold, got value; how to fix it`.
    """

    exit_code = EXIT_CONFIG

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Stopped(DistftError):
    """The run stopped on request, with a checkpoint behind it (SIGTERM, SIGINT, SIGUSR2)."""

    exit_code = EXIT_STOPPED
