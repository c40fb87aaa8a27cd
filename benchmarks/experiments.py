"""The experiments that are shipped for tasks, trained to their end: what their metric was before and after.

    python -m benchmarks.experiments

Each is `python -m distft.train +exp=NAME` as it stands, on its embedded data, with a held-out part. `seq2seq` is left
out: it starts from random weights, and is there to be run rather than to become good.
"""

import sys
import time
from dataclasses import dataclass

from benchmarks import measure
from benchmarks.measure import Target, report
from benchmarks.outcomes import evaluations


@dataclass(frozen=True)
class Aim:
    metric: str
    least: float


AIMS = {
    "sequence_classification": Aim("accuracy", 0.7),
    "token_classification": Aim("f1", 0.95),
    "relation_extraction": Aim("macro_f1", 0.95),
    "extractive_qa": Aim("f1", 0.9),
    "preference": Aim("accuracy", 0.7),
    "reward": Aim("accuracy", 0.7),
}


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--names", nargs="+", choices=AIMS, default=list(AIMS))
    args = parser.parse_args()
    rows, targets, measured = [], [], {}
    for name in args.names:
        aim, start = AIMS[name], time.monotonic()
        before, *_, after = measured[name] = evaluations([f"+exp={name}"])
        minutes = (time.monotonic() - start) / 60
        rows.append([name, aim.metric, f"{before[aim.metric]:.3f}", f"{after[aim.metric]:.3f}", f"{minutes:.1f}"])
        targets.append(Target(f"{name}: {aim.metric}", after[aim.metric], aim.least, at_least=True))
    columns = ["experiment", "metric", "before", "after", "minutes"]
    return report("experiments", args, columns, rows, targets, evaluations=measured)


if __name__ == "__main__":
    sys.exit(main())
