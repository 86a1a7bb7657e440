"""Completions that other tools wrote, as rollouts: text is tokenised once, here, never again.

What the rows lack is not invented: no log-probabilities means that training has to recompute
them with the behaviour model (`behavior_logprobs: recompute`). Nothing is graded here.

Prompt and completion are tokenised apart. Where a tokenizer joins a space to the word after it,
the text at the seam decides the tokens: let a template end in a newline or without a space, and
keep a leading space of the completions where the tool kept it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from topr.interop.column_map import ColumnMap
from topr.interop.import_options import ImportOptions
from topr.interop.row_files import RowStream
from topr.interop.row_tokens import RowTokens, TokenReader
from topr.interop.row_values import RowReader, are_verdicts, as_grade
from topr.records import Message, Rollout
from topr.store.cells import plain
from topr.tokenization.ends import Finish

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINE = "import"
_CHUNK = 512
"""Rows that are tokenised together: tokenizers are fastest on many texts at once."""


def import_rollouts(
    table: pa.Table | RowStream,
    *,
    columns: ColumnMap,
    tokenizer: "PreTrainedTokenizerBase",
    options: ImportOptions | None = None,
    tally: Counter[str] | None = None,
) -> Iterator[Rollout]:
    """Yield one rollout per row, in order. All rows are checked before the first is yielded.

    Token ids in the rows are kept as they are; where their text is missing, it is decoded from
    them. Otherwise the prompt gets the tokenizer's special tokens (no end-of-sequence token), and
    the completion none but the token that ended it: see `topr.tokenization.ends`. A prompt of
    messages goes through the chat template. What a server kept apart as reasoning is put back
    before the text.

    Where a row was sampled with more than a rollout can say (a penalty, min_p), its
    log-probabilities are left out: they are those of another distribution.

    A reward becomes a grade: a column of verdicts (bool, 0 and 1, correct and wrong) gives +1 and
    -1; other numbers are kept, those above 0 as correct. A null stays ungraded.

    Args:
        table: rows as `read_rows` or `RowStream.open` give them; of the latter few are in memory.
        columns: the column of each field; None in it means the usual names.
        tokenizer: of the model to be trained.
        options: how rows are read.
        tally: gets the counts of what was tokenised, decoded and assumed: see `import_stage`.

    Raises:
        ConfigError: the template has no `{prompt}`.
        ModelError: the tokenizer lacks an end-of-sequence token or chat template that is needed.
        DataError: a column is missing, or a row does not hold what it should (named by number).

    """
    rows = RowStream.of(table)
    options = options or ImportOptions()
    found = columns.resolve(rows, or_ids=True)
    options.validate(rows, found)
    tally = Counter() if tally is None else tally
    checking, reading = (
        _Importer(
            columns=found, tokens=TokenReader(tokenizer=tokenizer, options=options, tally=counts)
        )
        for counts in (Counter[str](), tally)
    )
    return reading.run(rows, verdicts=checking.check(rows))


@dataclass(kw_only=True)
class _Importer:
    """Rows to rollouts, a chunk at a time."""

    columns: ColumnMap
    tokens: TokenReader
    counts: Counter[str] = field(default_factory=Counter)
    """Samples of a problem that were numbered here."""
    seen: set[tuple[str, int]] = field(default_factory=set)

    def check(self, rows: RowStream) -> bool:
        """Read every row and make nothing of it: what is refused is refused before all work.

        Returns:
            Whether the rewards are verdicts: see `are_verdicts`.

        """
        rewards, graded = set(), False
        for place, row in rows:
            reader = RowReader(row, self.columns, place=place)
            rewards.add(reader.reward())
            graded = graded or reader.graded()
            draft = self._draft(reader)
            if draft and draft[0].completion_ids is not None:
                reader.logprobs(len(draft[0].completion_ids))
        return bool(self.columns.reward) and are_verdicts(rewards, graded=graded)

    def run(self, rows: RowStream, *, verdicts: bool) -> Iterator[Rollout]:
        tally = self.tokens.tally
        tally["verdicts"] = verdicts
        readers = (RowReader(row, self.columns, place=place) for place, row in rows)
        drafts = ((reader, *draft) for reader in readers if (draft := self._draft(reader)))
        while chunk := list(islice(drafts, _CHUNK)):
            self.tokens.tokenize([tokens for _, tokens, _ in chunk])
            for reader, tokens, others in chunk:
                completion_ids = tuple(plain(tokens.completion_ids))
                logprobs = reader.logprobs(len(completion_ids))
                if logprobs is not None and reader.drawn().unrecorded:
                    logprobs = None
                    tally["logprobs_left_out"] += 1
                texts = {n: getattr(tokens, n) for n in ("prompt", "completion", "finish_reason")}
                yield Rollout(
                    prompt_ids=tuple(plain(tokens.prompt_ids)),
                    completion_ids=completion_ids,
                    logprobs=None if logprobs is None else tuple(plain(logprobs)),
                    grade=as_grade(reader.reward(), verdicts=verdicts),
                    revision=None,
                    engine=ENGINE,
                    **texts,
                    **others,
                )

    def _draft(self, row: RowReader) -> tuple[RowTokens, dict[str, Any]] | None:
        """Return what a row says in tokens, and its other fields. None: a row to be left out."""
        options = self.tokens.options
        finish = row.finish(options.finish_words)
        if finish is Finish.DROP:
            self.tokens.tally["dropped"] += 1
            return None
        tokens = self.tokens.read(row, finish)
        question = tokens.question
        problem_id = row.label("problem_id") or _hash(question)
        iteration = row.integer("iteration")
        return tokens, {
            "sampling": row.sampling(options.sampling),
            "model": row.label("model") or options.model,
            "iteration": options.iteration if iteration is None else iteration,
            "gold": row.gold(options.several_golds),
            "problem_id": problem_id,
            "sample": self._number(row, problem_id),
            "question": question if isinstance(question, str) else question[-1].content,
        }

    def _number(self, row: RowReader, problem_id: str) -> int:
        sample = row.integer("sample")
        while sample is None:
            counted = self.counts[problem_id]
            self.counts[problem_id] += 1
            sample = None if (problem_id, counted) in self.seen else counted
        if (problem_id, sample) in self.seen:
            raise row.error(
                "sample", f'a number that no other row of {problem_id} has (sample="" numbers them)'
            )
        self.seen.add((problem_id, sample))
        return sample


def _hash(prompt: str | tuple[Message, ...]) -> str:
    if not isinstance(prompt, str):
        prompt = json.dumps([[turn.role, turn.content] for turn in prompt])
    return "prompt-" + hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
