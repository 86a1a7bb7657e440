"""Which column of other tools' rows holds what. Nothing is converted here."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow as pa

from topr.errors import DataError
from topr.interop.row_files import RowStream
from topr.store.cells import has_column, value_at
from topr.tokenization.prompts import REASONING_KEYS

TEXT = ("prompt", "completion")
"""Fields that must be there, as text or, where that will do, as ids."""


def _usual(*names: str) -> Any:
    """Return a field that is looked for under these names; the first one that is there is taken."""
    return field(default=None, metadata={"names": names})


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnMap:
    """The column that holds each field. None: look for the usual names; "": there is none.

    A field of a nested column is named with dots: `reward_model.ground_truth`.

    >>> ColumnMap(completion="generated_text").completion
    'generated_text'
    """

    prompt: str | None = _usual("prompt", "question", "problem", "query", "instruction", "input")
    """Text that the model was asked, or the bare question for a template."""
    completion: str | None = _usual("completion", "solution", "response", "output", "generation")
    """Text that the model wrote."""
    gold: str | None = _usual(
        "gold", "final_answer", "ground_truth", "gold_answer", "expected_answer", "answer",
        "target",
    )  # fmt: skip
    """Reference answer."""
    problem_id: str | None = _usual("problem_id", "question_id", "prompt_id", "id")
    """Name of the problem; without one, a hash of the prompt. A column named `id` is taken only
    if it never names two rows of the same prompt differently (then it names rows)."""
    sample: str | None = _usual("sample", "sample_index")
    """Number of the completion; without one, counted per problem in the rows' order."""
    model: str | None = _usual("model", "model_name")
    """Model that wrote the completion."""
    finish_reason: str | None = _usual("finish_reason", "stop_reason")
    """Why it ended."""
    prompt_ids: str | None = _usual("prompt_ids", "prompt_token_ids")
    """Token ids of the prompt."""
    completion_ids: str | None = _usual("completion_ids", "completion_token_ids")
    """Token ids of the completion."""
    logprobs: str | None = _usual("logprobs", "completion_logprobs", "token_logprobs")
    """Log-probability of each completion token; looked for only where there are completion ids."""
    reward: str | None = _usual("reward", "is_correct", "correct", "label", "score")
    """Verdict (bool, 0 or 1, correct or wrong) or reward."""
    iteration: str | None = _usual("iteration")
    """Number of the policy's step or iteration that the completion is of."""
    sampling: str | None = _usual("sampling")
    """How the completion was sampled: an object with fields of `SamplingParams`."""
    reasoning: str | None = _usual(*REASONING_KEYS)
    """Reasoning before `completion`, where a server gives the two in separate fields."""
    last_token_id: str | None = _usual("last_token_id")
    """The completion's last token, where only text is given: `topr export` writes it."""

    def resolve(
        self,
        table: "pa.Table | RowStream",
        *,
        required: Sequence[str] = TEXT,
        or_ids: bool = False,
    ) -> "ColumnMap":
        """Return the map with every None replaced by a column of `table`, or "" for none.

        Args:
            table: the rows.
            required: fields that must be there. If prompt and completion are among them, they are
                not guessed from several columns: a wrong guess would train on another text.
            or_ids: token ids will do where the text of a prompt or a completion is missing.

        Raises:
            DataError: a column given is not there, or one that is required was not found.

        """
        found = {f.name: self._find(f.name, table, required) for f in fields(self)}
        if not found["completion_ids"] and self.logprobs is None:
            found["logprobs"] = ""
        detected = self.problem_id is None and found["problem_id"] == "id"
        if detected and found["prompt"] and _names_rows(table, "id", found["prompt"]):
            found["problem_id"] = ""
        for name in required:
            any_of = (name, f"{name}_ids") if or_ids else (name,)
            if not any(found[one] for one in any_of):
                looked_for = [usual for one in any_of for usual in USUAL_NAMES[one]]
                raise DataError(
                    f"no {name} column: found {', '.join(table.column_names)}; looked for "
                    f"{', '.join(looked_for)}. Name it: --{name.replace('_', '-')} COLUMN (in "
                    f"Python, {name}=COLUMN)"
                )
        return replace(self, **found)

    def describe(self) -> str:
        """Return one line per field, for people: what was given or, once resolved, found."""
        shown = {None: "(to be looked for)", "": "(none)"}
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return "\n".join(f"{name:<15} {shown.get(v, v)}" for name, v in values.items())

    def _find(self, name: str, table: "pa.Table | RowStream", required: Sequence[str]) -> str:
        given: str | None = getattr(self, name)
        names = table.column_names
        if given is None:
            there = [usual for usual in USUAL_NAMES[name] if usual in names]
            ask = name in TEXT and name in required
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


USUAL_NAMES: dict[str, tuple[str, ...]] = {f.name: f.metadata["names"] for f in fields(ColumnMap)}
"""Names looked for where none is given; the first one that is there is taken."""


def _in_any(table: "pa.Table | RowStream", column: str) -> bool:
    return "." in column and any(has_column(row, column) for _, row in RowStream.of(table))


def _names_rows(table: "pa.Table | RowStream", identifier: str, prompt: str) -> bool:
    """Return whether some prompt has several identifiers: then they do not name problems."""
    pairs = set()
    for _, row in RowStream.of(table):
        text = repr(value_at(row, prompt))
        # Hashes: texts are long, rows many.
        pairs.add((hash((value_at(row, identifier), text)), hash(text)))
    return len(pairs) > len({text for _, text in pairs})
