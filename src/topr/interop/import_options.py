"""How rows of other tools are read where they do not say it themselves."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field

from topr.errors import ConfigError, DataError
from topr.interop.column_map import ColumnMap
from topr.interop.row_files import RowStream
from topr.records import SamplingParams, Several
from topr.records.distribution import distribution
from topr.store.cells import has_column
from topr.tokenization.ends import Finish

PLACE = "{prompt}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """How rows are read, where they do not say it themselves."""

    model: str = "unknown"
    """Behaviour model of rows that do not name one."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """How completions were sampled; defaults to temperature 1 without top-p and top-k."""
    iteration: int = 0
    """Number of rollouts that have none."""
    template: str = PLACE
    """Text around a prompt, with `{prompt}` where the prompt goes."""
    ends: bool | str | None = None
    """Whether completions without a finish reason ended by themselves; a string names a column that
    says so for each. None: text did, and token ids did where the last one ends a text or a turn, if
    the tokenizer has such a token."""
    finish_words: Mapping[str, Finish] = field(default_factory=dict)
    """The meaning of finish reasons that topr does not know."""
    eos_ids: Collection[int] = ()
    """Tokens that end a text for the model, in addition to those that the tokenizer names."""
    vocabulary: int | None = None
    """How many token ids the model knows. None: as many as the tokenizer; a model's embedding is
    often padded, and a sampler may choose what is beyond."""
    escape_special_tokens: bool = False
    """Insert a space into special tokens that a prompt's text spells out, so that they are text."""
    several_golds: Several = Several.REFUSE
    """What a list of several reference answers means."""
    reasoning_marks: str = ""
    """How the model writes its reasoning before its answer, with `{reasoning}` where it goes;
    empty: as the chat template has it."""
    drop_reasoning: bool = False
    """Leave out the reasoning where it is not in the token ids."""

    def validate(self, rows: RowStream, columns: ColumnMap) -> None:
        """Refuse what does not go with the rows, or would do nothing.

        Raises:
            ConfigError: a text lacks the place of what goes into it.
            DataError: a column is missing or of no use, or nothing can be sampled like this.

        """
        template, ends, marks = self.template, self.ends, self.reasoning_marks
        distribution(asdict(self.sampling))
        if PLACE not in template:
            raise ConfigError(f"template {template!r} has no {PLACE}, the place of the prompt")
        if marks and "{reasoning}" not in marks:
            raise ConfigError(f"reasoning marks {marks!r} have no {{reasoning}}, its place")
        if columns.prompt_ids and template != PLACE:
            raise DataError(
                f"column {columns.prompt_ids} holds prompt ids, which a template cannot change: "
                'leave out the template, or the ids (prompt_ids="")'
            )
        if columns.logprobs and not columns.completion_ids:
            raise DataError(
                f"column {columns.logprobs} holds log-probabilities, but there are no completion "
                "ids that they belong to: name their column (completion_ids=COLUMN), or leave them "
                'out (logprobs="")'
            )
        if isinstance(ends, str) and not any(has_column(row, ends) for _, row in rows):
            raise DataError(f"no column {ends!r} for ends: found {', '.join(rows.column_names)}")
