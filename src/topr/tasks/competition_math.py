"""MATH: competition problems, with the 4-shot Minerva prompt. Named so as not to be `math`.

Dataset: Hendrycks et al. 2021, arXiv 2103.03874; test problems: the 500 of Lightman et al. 2023,
arXiv 2305.20050. Prompt: Lewkowycz et al. 2022, arXiv 2206.14858, appendix D.2.
"""

from collections.abc import Hashable
from functools import cached_property

from topr.config import MathConfig
from topr.errors import DataError
from topr.grading.markers import BOX
from topr.grading.statements import content_of_box
from topr.records.golds import read_gold
from topr.tasks.prompts import TextForm
from topr.tasks.question_set import QuestionSet
from topr.tasks.sources import EmptyCellError, Source, SourceRow, read_hub, read_hub_subsets
from topr.tasks.splits import question_key

# Widely used copies of this prompt have a stray brace after the first problem; it is left out.
EXAMPLES: tuple[tuple[str, str], ...] = (
    (
        r"Find the domain of the expression $\frac{\sqrt{x-2}}{\sqrt{5-x}}$.",
        r"The expressions inside each square root must be non-negative. Therefore, $x-2 \ge 0$, so "
        r"$x\ge2$, and $5 - x \ge 0$, so $x \le 5$. Also, the denominator cannot be equal to zero, "
        r"so $5-x>0$, which gives $x<5$. Therefore, the domain of the expression is "
        r"$\boxed{[2,5)}$."
        "\nFinal Answer: The final answer is $[2,5)$. I hope it is correct.",
    ),
    (
        r"If $\det \mathbf{A} = 2$ and $\det \mathbf{B} = 12,$ then find "
        r"$\det (\mathbf{A} \mathbf{B}).$",
        r"We have that $\det (\mathbf{A} \mathbf{B}) = (\det \mathbf{A})(\det \mathbf{B}) = "
        r"(2)(12) = \boxed{24}.$"
        "\nFinal Answer: The final answer is $24$. I hope it is correct.",
    ),
    (
        "Terrell usually lifts two 20-pound weights 12 times. If he uses two 15-pound weights "
        "instead, how many times must Terrell lift them in order to lift the same total weight?",
        r"If Terrell lifts two 20-pound weights 12 times, he lifts a total of "
        r"$2\cdot 12\cdot20=480$ pounds of weight.  If he lifts two 15-pound weights instead for "
        r"$n$ times, he will lift a total of $2\cdot15\cdot n=30n$ pounds of weight.  Equating "
        "this to 480 pounds, we can solve for $n$:\n"
        "\\begin{align*}\n"
        "30n&=480\\\\\n"
        "\\Rightarrow\\qquad n&=480/30=\\boxed{16}\n"
        "\\end{align*}"
        "\nFinal Answer: The final answer is $16$. I hope it is correct.",
    ),
    (
        "If the system of equations\n\n"
        "\\begin{align*}\n"
        "6x-4y&=a,\\\\\n"
        "6y-9x &=b.\n"
        "\\end{align*}has a solution $(x, y)$ where $x$ and $y$ are both nonzero, find "
        r"$\frac{a}{b},$ assuming $b$ is nonzero.",
        "If we multiply the first equation by $-\\frac{3}{2}$, we obtain\n\n"
        "$$6y-9x=-\\frac{3}{2}a.$$Since we also know that $6y-9x=b$, we have\n\n"
        r"$$-\frac{3}{2}a=b\Rightarrow\frac{a}{b}=\boxed{-\frac{2}{3}}.$$"
        "\nFinal Answer: The final answer is $-\\frac{2}{3}$. I hope it is correct.",
    ),
)
"""Problems and worked solutions, in the paper's order and wording."""

INSTRUCTION = (
    "Solve the problem step by step. End with "
    '"Final Answer: The final answer is $ANSWER$. I hope it is correct."'
)
"""Stands in for the examples where there are none: nothing else says how an answer ends."""
FORM = TextForm(question="Problem:\n{question}\n\nSolution:\n", answer="{answer}\n\n")
"""It ends in the line break that follows "Solution:" in the examples: tokenizers that join a colon
and a line break into one token would otherwise see another token there than in the examples."""

_ADVICE = (
    "MATH has the columns 'problem' and 'solution', the latter with its answer in \\boxed{}, or "
    "'problem' and 'answer'; for other columns use task.name=jsonl"
)


class MathTask(QuestionSet[MathConfig]):
    """MATH, from the hub or from local files of the same fields."""

    name = "math"
    grader = "math"
    column = "problem"
    form, instruction, examples, advice = FORM, INSTRUCTION, EXAMPLES, _ADVICE
    # The examples' closing words end an answer at once, and what runs on after them could only be
    # another problem. "\nProblem:" catches a model that leaves the closing words out.
    stops = ("I hope it is correct.", "\nProblem:")

    def read_hub(self, kind: str, split: str) -> Source:
        """See `QuestionSet`."""
        if kind == "test":
            return read_hub(self._config.test_dataset, None, split, instead="test_file")
        return read_hub_subsets(self._config.dataset, split, instead="train_file")

    def gold(self, row: SourceRow, kind: str) -> tuple[str, str | None]:
        """See `QuestionSet`. A row of a level that is not asked for is left out unsaid."""
        if not self._wants(row):
            return "", ""
        gold, whole = _gold(row)
        if not gold:
            return gold, "with an empty answer"
        if kind == "train" and not whole:
            # Often all boxes together are the answer: half an answer would be rewarded, and the
            # whole one punished. The test keeps them, as everybody's does.
            return gold, "with several different boxed answers"
        question = row.text(self.column, _ADVICE)
        if kind == "train" and question_key(question) in self._in_prompt:
            # The four examples are training problems; their prompt would hold the solution.
            return gold, "that are examples in the prompt"
        return gold, None

    @cached_property
    def _in_prompt(self) -> set[Hashable]:
        return {question_key(problem) for problem, _ in self._examples}

    def _wants(self, row: SourceRow) -> bool:
        """Return whether a problem is of the levels that are asked for: 3, or "Level 3"."""
        levels = self._config.levels
        if levels is None:
            return True
        found = row.cells.get("level")
        if found is None:
            raise row.fail(
                "there is no 'level', and task.levels asks for some",
                "Take data with that column (MATH has it), or leave task.levels out",
            )
        return str(found).removeprefix("Level").strip() in {str(level) for level in levels}


def boxed(solution: str) -> list[str]:
    r"""Return what stands in each outermost \boxed{} or \fbox{}, in order.

    >>> boxed(r"Either $\boxed{-2}$ or \fbox{$\frac{1}{2}$}.")
    ['-2', '$\\frac{1}{2}$']
    """
    found = []
    position = 0
    while (match := BOX.search(solution, position)) is not None:
        box = content_of_box(solution, match.end())
        if box is None:
            break
        found.append(box[0])
        position = box[1]
    return found


def _gold(row: SourceRow) -> tuple[str, bool]:
    """Return the gold answer, and whether it is surely the whole answer."""
    try:
        given = read_gold(row.cells.get("answer"))
    except DataError as error:
        raise row.fail(f"column 'answer' {error}", _ADVICE) from error
    if given is not None and row.cells.get("solution") is None:
        return given.strip(), True
    boxes = boxed(row.text("solution", _ADVICE))
    if given is None and not boxes:
        problem = "column 'solution' has no \\boxed{} answer"
        raise row.fail(problem, _ADVICE, EmptyCellError)
    gold = (boxes[-1] if given is None else given).strip()
    # An answer other than the last box was written by somebody who looked at the whole.
    whole = len(set(boxes)) <= 1 or gold != boxes[-1]
    return gold, whole
