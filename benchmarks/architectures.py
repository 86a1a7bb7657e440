"""Write docs/tables/architectures.csv anew: every causal language model of transformers goes
through the trainer and the engine, as in tests/architectures. A few minutes on one core.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/architectures.py
"""

import logging
import sys
import warnings
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "architectures"), str(TESTS)]

import table  # noqa: E402
import zoo  # noqa: E402
from fitness import judge_engine, judge_trainer  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    verdicts = {}
    for name in zoo.TRIED:
        model = zoo.build(name)
        verdicts[name] = judge_trainer(model), judge_engine(model)
        print(name, *(f"| {each.outcome}: {each.detail}" for each in verdicts[name]), flush=True)
    table.write(verdicts)
    bad = [name for name, pair in verdicts.items() if not all(each.fine for each in pair)]
    print(f"{len(verdicts)} tried, neither right nor refused: {', '.join(bad) or 'none'}")


if __name__ == "__main__":
    main()
