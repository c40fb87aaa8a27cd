"""Conversations for tests."""


def chat(*utterances: str) -> dict:
    """A conversation that the user opens."""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": u} for i, u in enumerate(utterances)]}
