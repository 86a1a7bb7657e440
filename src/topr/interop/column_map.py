"""Which column of other tools' rows holds what. Nothing is converted here."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import pyarrow as pa

from topr.errors import DataError
from topr.interop.row_reader import Rows
from topr.store.cells import has_column, value_at
from topr.tokenization.prompts import REASONING_KEYS

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem", "query", "instruction", "input"),
    "completion": ("completion", "solution", "response", "output", "generation"),
    "gold": (
        "gold", "final_answer", "ground_truth", "gold_answer", "expected_answer", "answer",
        "target",
    ),
    "problem_id": ("problem_id", "question_id", "prompt_id", "id"),
    "sample": ("sample", "sample_index"),
    "model": ("model", "model_name"),
    "finish_reason": ("finish_reason", "stop_reason"),
    "prompt_ids": ("prompt_ids", "prompt_token_ids"),
    "completion_ids": ("completion_ids", "completion_token_ids"),
    "logprobs": ("logprobs", "completion_logprobs", "token_logprobs"),
    "reward": ("reward", "is_correct", "correct", "label", "score"),
    "iteration": ("iteration",),
    "sampling": ("sampling",),
    "reasoning": REASONING_KEYS,
    "last_token_id": ("last_token_id",),
}  # fmt: skip
"""Names looked for where none is given, the first one that is there wins."""
TEXT = ("prompt", "completion")
TEXT_OR_IDS = (("prompt", "prompt_ids"), ("completion", "completion_ids"))
"""What has to be there: of a tuple, one of its fields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnMap:
    """The column that holds each thing. None: look for the usual names; "": there is none.

    A field of a nested column is named with dots: `reward_model.ground_truth`.

    >>> ColumnMap(completion="generated_text").completion
    'generated_text'
    """

    prompt: str | None = None
    """Text that the model was asked, or the bare question for a template."""
    completion: str | None = None
    """Text that the model wrote."""
    gold: str | None = None
    """Reference answer."""
    problem_id: str | None = None
    """Name of the problem; without one, a hash of the prompt. A column named `id` is taken only
    if it never names two rows of the same prompt differently (then it names rows)."""
    sample: str | None = None
    """Number of the completion; without one, counted per problem in the rows' order."""
    model: str | None = None
    """Who wrote the completion."""
    finish_reason: str | None = None
    """Why it ended."""
    prompt_ids: str | None = None
    """Token ids of the prompt."""
    completion_ids: str | None = None
    """Token ids of the completion."""
    logprobs: str | None = None
    """Log-probability of each completion token; looked for only beside completion ids."""
    reward: str | None = None
    """Verdict (bool, 0 or 1, correct or wrong) or reward."""
    iteration: str | None = None
    """Number of the policy's step or iteration that the completion is of."""
    sampling: str | None = None
    """How the completion was drawn: an object with fields of `SamplingParams`."""
    reasoning: str | None = None
    """What the model thought before `completion`, where a server keeps the two apart."""
    last_token_id: str | None = None
    """The completion's last token, where text alone is given: `topr export` writes it."""

    def resolve(
        self, table: "pa.Table | Rows", required: Sequence[str | tuple[str, ...]] = TEXT
    ) -> "ColumnMap":
        """Return the map with every None replaced by a column of `table`, or "" for none.

        Raises:
            DataError: a column given is not there, or one that is required was not found.

        """
        names = table.column_names
        needed = {n for name in required for n in ((name,) if isinstance(name, str) else name)}
        found = {
            f.name: self._find(f.name, names, table, ask=f.name in needed and f.name in TEXT)
            for f in fields(self)
        }
        if not found["completion_ids"] and self.logprobs is None:
            found["logprobs"] = ""
        detected = self.problem_id is None and found["problem_id"] == "id"
        if detected and found["prompt"] and _names_rows(table, "id", found["prompt"]):
            found["problem_id"] = ""
        for wanted in required:
            any_of = (wanted,) if isinstance(wanted, str) else wanted
            if not any(found[name] for name in any_of):
                looked_for = [usual for name in any_of for usual in USUAL_NAMES[name]]
                raise DataError(
                    f"no {any_of[0]} column: found {', '.join(names)}; looked for "
                    f"{', '.join(looked_for)}. Name it: --{any_of[0].replace('_', '-')} COLUMN "
                    f"(in Python, {any_of[0]}=COLUMN)"
                )
        return replace(self, **found)

    def describe(self) -> str:
        """Return one line per field, for people: what was given or, once resolved, found."""
        shown = {None: "(to be looked for)", "": "(none)"}
        lines = []
        for f in fields(self):
            value = getattr(self, f.name)
            lines.append(f"{f.name:<15} {shown.get(value, value)}")
        return "\n".join(lines)

    def _find(self, name: str, names: Sequence[str], table: "pa.Table | Rows", *, ask: bool) -> str:
        """Return a column of the table, or "". With `ask`, a name is not guessed from several:
        a wrong guess would train on another text.
        """
        given: str | None = getattr(self, name)
        if given is None:
            there = [usual for usual in USUAL_NAMES[name] if usual in names]
            if ask and len(there) > 1 and there[0] != USUAL_NAMES[name][0]:
                raise DataError(
                    f"the {name} may be in any of the columns {', '.join(there)}: say which it is, "
                    f"--{name} COLUMN (in Python, {name}=COLUMN)"
                )
            return there[0] if there else ""
        if given and given not in names and not _in_any(table, given):
            raise DataError(
                f"no column {given!r} for {name}: found {', '.join(names)}. "
                f"Give one of them, or leave {name} out"
            )
        return given


def _in_any(table: "pa.Table | Rows", column: str) -> bool:
    return "." in column and any(has_column(row, column) for _, row in Rows.of(table))


def _names_rows(table: "pa.Table | Rows", identifier: str, prompt: str) -> bool:
    """Return whether some prompt has several identifiers: then they do not name problems."""
    pairs = set()
    for _, row in Rows.of(table):
        text = repr(value_at(row, prompt))
        pairs.add(
            (hash((value_at(row, identifier), text)), hash(text))
        )  # texts are long, rows many
    return len(pairs) > len({text for _, text in pairs})
