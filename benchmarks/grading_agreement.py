"""Agreement of topr's graders, and of plain math-verify, with labelled data.

    python benchmarks/grading_agreement.py --data ../shared/data [--json agreement.json]

For each labelled file in the folder: rows counted, agreement, false accepts, misses. Rows marked
`disputed` are left out and reported apart. Reference solutions are graded against their own
final answers. `--errors` prints every disagreement. math-verify runs with its defaults, on the
whole text, with the gold answer in a box.
"""

import argparse
import gzip
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topr.config.sections import GradeConfig
from topr.grading import grade_all
from topr.records import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One file: which columns hold what, and how it is graded."""

    file: str
    grader: str
    text: str
    gold: str = "gold"
    label: str | None = None
    answer_only: bool = False


SOURCES = (
    Source(file="gsm8k_model_solutions.jsonl.gz", grader="numeric", text="solution",
           label="is_correct"),
    Source(file="gsm8k_rho_solutions.jsonl.gz", grader="numeric", text="solution",
           label="is_correct"),
    Source(file="gsm8k_answer_pairs.jsonl", grader="numeric", text="prediction",
           label="expected", answer_only=True),
    Source(file="math_model_solutions.jsonl.gz", grader="math", text="solution",
           label="is_correct"),
    Source(file="math_answer_pairs.jsonl", grader="math", text="prediction", label="expected",
           answer_only=True),
    Source(file="grading_cases.jsonl", grader="math", text="prediction", label="expected",
           answer_only=True),
    Source(file="gsm8k_train.jsonl.gz", grader="numeric", text="answer", gold="final_answer"),
    Source(file="gsm8k_test.jsonl.gz", grader="numeric", text="answer", gold="final_answer"),
    Source(file="math_train.jsonl.gz", grader="math", text="solution", gold="answer"),
    Source(file="math_test.jsonl.gz", grader="math", text="solution", gold="answer"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """What one grader makes of one file."""

    file: str
    tool: str
    rows: int
    agree: float
    false_accepts: int
    misses: int
    disputed: int
    disputed_agree: int
    seconds: float


def read_rows(path: Path) -> list[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def with_topr(rows: list[dict[str, Any]], source: Source, config: GradeConfig) -> list[bool]:
    items = [(row[source.text], row[source.gold]) for row in rows]
    grades = grade_all(items, source.grader, config=config, answer_only=source.answer_only)
    return [grade.outcome is Outcome.CORRECT for grade in grades]


def in_a_box(answer: str) -> str:
    """What math-verify needs to see bare LaTeX: a box, unless it is set off already."""
    return answer if re.search(r"(?<!\\)\$|boxed", answer) else rf"\boxed{{{answer}}}"


def is_prose(answer: str) -> bool:
    return len(re.findall(r"(?<!\\)\b[a-z]{2,}", answer)) > 2


def with_math_verify(rows: list[dict[str, Any]], source: Source, config: GradeConfig) -> list[bool]:
    from math_verify import parse, verify

    del config
    accepted = []
    for row in rows:
        text, gold = row[source.text], row[source.gold]
        if source.answer_only and not is_prose(text):
            text = in_a_box(text)
        try:
            accepted.append(bool(verify(parse(in_a_box(gold)), parse(text))))
        except Exception:
            accepted.append(False)
    return accepted


def measure(
    tool: str,
    grade: Callable[[list[dict[str, Any]], Source, GradeConfig], list[bool]],
    source: Source,
    rows: list[dict[str, Any]],
    config: GradeConfig,
    errors: bool,
) -> Agreement:
    started = time.perf_counter()
    accepted = grade(rows, source, config)
    seconds = time.perf_counter() - started
    wanted = [source.label is None or bool(row[source.label]) for row in rows]
    kept = [i for i, row in enumerate(rows) if not row.get("disputed")]
    false_accepts = [i for i in kept if accepted[i] and not wanted[i]]
    misses = [i for i in kept if wanted[i] and not accepted[i]]
    if errors:
        for kind, indices in (("false accept", false_accepts), ("miss", misses)):
            for i in indices:
                row = rows[i]
                print(f"  {tool} {kind}: {row[source.gold]!r} | {row[source.text][-200:]!r}")
    disputed = [i for i, row in enumerate(rows) if row.get("disputed")]
    return Agreement(
        file=source.file.partition(".")[0],
        tool=tool,
        rows=len(kept),
        agree=1 - (len(false_accepts) + len(misses)) / max(1, len(kept)),
        false_accepts=len(false_accepts),
        misses=len(misses),
        disputed=len(disputed),
        disputed_agree=sum(accepted[i] == wanted[i] for i in disputed),
        seconds=round(seconds, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled data")
    parser.add_argument("--json", type=Path, help="write the table here, too")
    parser.add_argument("--errors", action="store_true", help="print every disagreement")
    parser.add_argument("--only", help="files whose name contains this")
    parser.add_argument("--skip-math-verify", action="store_true")
    options = parser.parse_args()
    tools = {"topr": with_topr, "math-verify": with_math_verify}
    if options.skip_math_verify:
        del tools["math-verify"]
    results = []
    print(f"{'file':24} {'tool':12} {'rows':>6} {'agree':>8} {'false accepts':>14} {'misses':>7}"
          f" {'disputed (as labelled)':>23} {'s':>7}")  # fmt: skip
    for source in SOURCES:
        path = options.data / source.file
        if not path.exists() or (options.only and options.only not in source.file):
            continue
        rows = read_rows(path)
        for tool, grade in tools.items():
            r = measure(tool, grade, source, rows, GradeConfig(), options.errors)
            results.append(asdict(r))
            print(f"{r.file:24} {r.tool:12} {r.rows:6} {r.agree:8.2%} {r.false_accepts:14} "
                  f"{r.misses:7} {f'{r.disputed_agree} of {r.disputed}':>23} {r.seconds:7}",
                  flush=True)  # fmt: skip
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
