"""`given`: what a command may ask of its own command line before the config is there."""

from distft.config.reading.compose import given


def test_keys_are_found_however_they_are_set_and_the_last_one_counts():
    words = [
        "--cfg",
        "job",
        "+exp=llama_lora",
        "++data.eval=a.jsonl",
        "data.eval='b c.jsonl'",
        "ensemble=[runs/a,runs/b]",
    ]
    found = given(words)
    assert {key: override.value() for key, override in found.items()} == {
        "exp": "llama_lora",
        "data.eval": "b c.jsonl",
        "ensemble": ["runs/a", "runs/b"],
    }
    assert found["data.eval"].get_value_string() == "'b c.jsonl'", "as it can be said again"


def test_what_is_deleted_or_cannot_be_read_is_not_given():
    assert given(["~data.eval", "--help", "data.eval", "=3", "prompt=["]) == {}
