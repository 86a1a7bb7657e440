"""The grader of reasoning_gym: the answer of a completion, given to the scorer of its dataset.

What a dataset is, and what its scorer may be given, is `topr.grading.gym_datasets`'s business,
where an answer is stated that of `topr.grading.statements`.
"""

import re
from dataclasses import replace

from topr.errors import ConfigError, GradingError
from topr.grading.gym_datasets import PACKAGE, Entry, score, version
from topr.grading.markers import Kind, find_markers
from topr.grading.reasoning import strip_reasoning
from topr.grading.remarks import is_remark, next_question
from topr.grading.sentences import MAX_COMPLETION
from topr.grading.statements import Statement, Unread, extract_answer
from topr.grading.verdict import Verdict
from topr.records import Grade

LABEL = "Answer:"
"""What announces an answer, in prompts and in completions."""
_WRAPPED = re.compile(r"(\*{1,3}|`{1,3}|\"|'|\$)(?=\S)(.+?)(?<=\S)\1", re.S)
_HEADING = re.compile(r"[:：]?[ \t]*[*_]{0,3}[ \t]*\n")
"""What is left of the line of a marker that announces the lines below it."""
_CLOSING = re.compile(r"</(?:final[_ -]?)?[a-z]{5,10}>|<\|end_of_box\|>", re.I)
_FENCED = re.compile(r"\s*```\w*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.S)


def grade_gym(completion: str, gold: str, answer_only: bool = False) -> Grade:
    """Give the answer of a completion to the scorer of its dataset.

    Args:
        completion: a solution, or with `answer_only` a final answer.
        gold: what `Entry.to_json` wrote.
        answer_only: whether the completion is a final answer, not a solution.

    Raises:
        GradingError: the package is not there, or another version of it made the problem.

    """
    _check_installed()
    entry = Entry.from_json(gold)
    if entry is None:
        return Verdict.gold_unparseable()
    if entry.version != version():
        raise GradingError(
            f"a problem of {entry.dataset} was made by {PACKAGE} {entry.version}, and {version()} "
            f"is installed, which may score otherwise: pip install {PACKAGE}=={entry.version}, or "
            "make the rollouts anew"
        )
    if len(completion) > MAX_COMPLETION:
        return Verdict.unparseable()
    text = strip_reasoning(completion)
    answer = text.strip() if answer_only else read_answer(text, entry)
    return Verdict.unparseable() if not answer else _scored(answer, entry)


def read_answer(text: str, entry: Entry) -> str | None:
    """Return the answer that a text states; None where it states none.

    It stands between <answer> tags, after "Answer:" or "The answer is", or in a box: the last such
    place counts. Where the prompt ends in "Answer:", a text without one begins with its answer;
    elsewhere it may be an answer and nothing else. Where the reference has several lines, an answer
    continues to the end of the text.
    """
    several = "\n" in entry.answer
    read = _read_lines if several else _read_line
    if entry.label and not find_markers(text):
        text = f"{LABEL} {text.lstrip()}"
    if find_markers(text):
        return read(text)
    alone = text[: next_question(text, 0)].strip()
    return alone if alone.count("\n") == entry.answer.count("\n") else None


def _read_line(text: str) -> str | None:
    stated = extract_answer(text, _said)
    return None if stated is None or isinstance(stated[0], Unread) else stated[0]


def _said(statement: Statement) -> str | Unread:
    """All of a statement. An answer may be any word, also one that a remark begins with."""
    text = statement.text.strip()
    spoken = statement.kind is Kind.SENTENCE and is_remark(text)
    return Unread.REMARK if not text or spoken else text


def _read_lines(text: str) -> str | None:
    text = text[: next_question(text, find_markers(text)[0].end)]
    for marker in reversed(find_markers(text)):
        heading = _HEADING.match(text, marker.end)
        rest = text[marker.end if heading is None else heading.end() :]
        if marker.kind is Kind.TAG:
            rest = _CLOSING.split(rest, maxsplit=1)[0]
        fenced = _FENCED.match(rest)
        if lines := (rest if fenced is None else fenced[1]).strip():
            return lines
    return None


def _bare(answer: str) -> str:
    """An answer without emphasis, quotes or a full stop around it."""
    answer = answer.removesuffix(".").strip()
    wrapped = _WRAPPED.fullmatch(answer)
    return answer if wrapped is None else wrapped[2].strip().removesuffix(".")


def _scored(answer: str, entry: Entry) -> Grade:
    """The grade of an answer as it is written or as `_bare` leaves it, whichever scores more."""
    scores: dict[str, float] = {}
    for written in dict.fromkeys((answer, _bare(answer))):
        try:
            scores[written] = score(entry, written)
        except (MemoryError, RecursionError):
            raise
        except ConfigError as error:
            raise GradingError(str(error)) from error
        except Exception:  # noqa: S112 the scorer cannot read it, and nobody foresaw how it fails
            continue
    if not scores:
        return Verdict.unparseable(answer)
    best = max(scores, key=lambda written: scores[written])
    grade = Verdict.of(scores[best] >= entry.threshold, best)
    return (
        replace(grade, reward=_linear(scores[best], entry.threshold))
        if (entry.reward == "linear")
        else grade
    )


def _linear(found: float, threshold: float) -> float:
    """Return -1 for a score of 0, 0 at the threshold, +1 for a score of 1, straight in between."""
    if found < threshold:
        return found / threshold - 1.0
    return 1.0 if threshold == 1.0 else (found - threshold) / (1.0 - threshold)


def _check_installed() -> None:
    try:
        version()
        import reasoning_gym  # noqa: F401 before any time limit runs
    except (ConfigError, ImportError) as error:
        raise GradingError(str(error)) from error
