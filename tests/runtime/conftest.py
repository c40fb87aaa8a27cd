from tests.resume.tiny_run import commands, tiny  # noqa: F401  (fixtures)
