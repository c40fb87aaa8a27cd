from tests.resume.tiny_run import commands, tiny

__all__ = ["commands", "tiny"]
