"""Side-by-side measurements: `python -m benchmarks.NAME` prints a table and writes `benchmarks/results/NAME.json`."""

import distft  # noqa: F401  (sets its process environment, which must come before torch)
