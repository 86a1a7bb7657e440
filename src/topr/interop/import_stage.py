"""What another tool left becomes a directory of rollouts, a shard at a time.

`formats` brings rows into our names and `importers` tokenises them; here files are written, and the
manifest says what was done to the rows.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from topr.errors import DataError, RunDirectoryError
from topr.interop.column_map import USUAL_NAMES, ColumnMap
from topr.interop.formats import FORMATS, OURS, ImportSource
from topr.interop.import_options import ImportOptions
from topr.interop.importers import import_rollouts
from topr.interop.row_files import RawRow, RowStream
from topr.interop.row_values import RowReader
from topr.store import shard_paths, write_shard
from topr.store.manifest import Manifest, begin, is_begun, read_manifest, write_manifest
from topr.store.schema import ROLLOUT_SCHEMA, conform, rollouts_to_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD_ROWS = 8192
_OUR_COLUMNS = ColumnMap(**{name: name for name in USUAL_NAMES})


def write_rollouts(
    source: ImportSource,
    directory: Path,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    fingerprint: str,
    details: dict[str, Any],
    options: ImportOptions | None = None,
) -> Manifest:
    """Write the rollouts and return the manifest. Killed, the same call resumes.

    The manifest's details are `details`, `format`, `tokenized` (how many prompts and completions
    had no ids and were tokenised here), `decoded` (how many completions had only ids), the counts
    that `report` explains, and `verdicts` and `ends`: what was assumed.

    Args:
        source: what came in.
        directory: where the shards go.
        tokenizer: of the model to be trained.
        fingerprint: of the result.
        details: what else the manifest is to say.
        options: how rows are read.

    Raises:
        RunDirectoryError: the directory holds something else.
        DataError: a row does not hold what it should.

    """
    if shard_paths(directory) and not (is_begun(directory) or read_manifest(directory)):
        raise RunDirectoryError(
            f"{directory} holds rollouts already, which are not overwritten: write elsewhere"
        )
    with begin(directory, "import", fingerprint) as done:
        if done is not None:
            return done
        options, tally = options or ImportOptions(), Counter[str]()
        if source.format == OURS:
            tables = _own(source.rows, options.vocabulary or len(tokenizer))
        else:
            rollouts = import_rollouts(
                source.rows, columns=source.columns, tokenizer=tokenizer, options=options,
                tally=tally,
            )  # fmt: skip
            chunks = iter(lambda: list(islice(rollouts, SHARD_ROWS)), [])
            tables = (rollouts_to_table(chunk) for chunk in chunks)
        for index, table in enumerate(tables):
            if not (directory / f"part-{index:05d}.parquet").exists():
                write_shard(directory, index, table)
            tally["rows"] += table.num_rows
            tally["graded"] += table.num_rows - table["grade"].null_count
            tally["without_logprobs"] += table["logprobs"].null_count
        manifest = Manifest(
            stage="import",
            fingerprint=fingerprint,
            rows=tally["rows"],
            files=tuple(path.name for path in shard_paths(directory)),
            details=details | _details(source, tally | source.tally, options),
        )
        write_manifest(directory, manifest)
        return manifest


def _details(source: ImportSource, tally: Counter[str], options: ImportOptions) -> dict[str, Any]:
    kinds = ("prompts", "completions")
    return {
        "format": source.format,
        "tokenized": {kind: tally[f"{kind}_tokenized"] for kind in kinds},
        "decoded": tally["completions_decoded"],
        **{name: tally[name] for name in _COUNTED},
        "verdicts": bool(tally["verdicts"]),
        "ends": "no" if options.ends is False else "yes",
    }


_COUNTED = (
    "ends_assumed", "ended_by_id", "cut_off_by_id", "logprobs_left_out", "stopped_without_end",
    "cut_at_end", "reasoning_rebuilt", "reasoning_dropped", "dropped", "left_out", "graded",
    "without_logprobs",
)  # fmt: skip
_REPORT = {
    "tokenized": "{tokenized} completions were text only: tokenised here, once, with an end token "
    "where they ended",
    "kept": "{kept} completions came with token ids, which are kept",
    "ends_assumed": "{ends_assumed} do not say how they ended: taken as {taken}",
    "by_id": "{by_id} with token ids do not say how they ended: {ended_by_id} end with a token "
    "that ends a text or a turn; {cut_off_by_id} do not, and count as truncated (finish_reason "
    "length). If a stop string ended them, import with --ends yes",
    "logprobs_left_out": "{logprobs_left_out} were sampled with a penalty, min_p or the like: "
    "their log-probabilities are not those of the distribution that training scores, and are "
    "left out",
    "stopped_without_end": "{stopped_without_end} say that they ended by themselves, but their ids "
    "have no end token: correct if a stop string ended them; if the tool leaves the end token out, "
    "the model does not learn to end",
    "cut_at_end": "{cut_at_end} continue after an end token that their text spells out: what "
    "follows it is left out",
    "reasoning_rebuilt": "{reasoning_rebuilt} came with their reasoning in a separate field: it "
    "is put back before the text, as the model writes it",
    "reasoning_dropped": "{reasoning_dropped} are imported without their reasoning "
    "(--drop-reasoning): they are not what the model wrote, and log mu recomputed on them is not "
    "that of their sampling",
    "dropped": "{dropped} are left out because of their finish reason (--finish-reason)",
    "left_out": "{left_out} answers are not completions (failed requests, tool calls, filtered "
    "ones): left out",
    "note": "{note}",
    "graded": "{graded} have the grade of column {column}{as_signs}; to grade them with `topr "
    "grade` instead, import with --reward ''",
    "ungraded": "none is graded: use `topr grade`",
    "without_logprobs": "{without_logprobs} of {rows} have no log-probabilities: train on them "
    "with train.behavior_logprobs=recompute",
}
"""What is said of each count that is not 0, in this order."""
_TAKEN = {"no": "truncated", "yes": "ended by themselves (--ends no if they were truncated)"}


def report(manifest: Manifest, reward: str | None) -> list[str]:
    """Return what the user has to know of imported rollouts: what was done to them, whether they
    are graded, and what training on them takes.
    """
    found = Counter(manifest.details)
    tokenized = manifest.details["tokenized"]["completions"]
    facts = {
        **found,
        "rows": manifest.rows,
        "tokenized": tokenized,
        "kept": manifest.rows - tokenized,
        "by_id": found["ended_by_id"] + found["cut_off_by_id"],
        "taken": _TAKEN[str(found["ends"])],
        "note": FORMATS[manifest.details["format"]].note,
        "column": reward or "grade",
        "as_signs": ": -1 for wrong, +1 for right" if found["verdicts"] else "",
        "ungraded": not found["graded"],
    }
    return [text.format_map(facts) for name, text in _REPORT.items() if facts.get(name)]


def _own(rows: RowStream, vocabulary: int) -> Iterator[pa.Table]:
    """Return tables of rows that are rollouts already; a column that is not ours is left out."""
    for _ in _own_tables(rows, vocabulary):
        pass  # what is refused is refused before anything is written
    return _own_tables(rows, None)


def _own_tables(rows: RowStream, vocabulary: int | None) -> Iterator[pa.Table]:
    stream = iter(rows)
    while chunk := list(islice(stream, SHARD_ROWS)):
        where = f"{chunk[0][0]} to {chunk[-1][0]}"
        known = [_known(place, row, vocabulary) for place, row in chunk]
        try:
            table = pa.Table.from_pylist(known, ROLLOUT_SCHEMA)
        except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError) as error:
            raise DataError(
                f"{where}: a value does not fit topr's schema ({error}). Fix it, or import text "
                "with --format trl"
            ) from error
        yield conform(table, where=where)


def _known(place: str, row: RawRow, vocabulary: int | None) -> RawRow:
    """Return the columns that are ours, checked (with a vocabulary) as other tools' are."""
    known = {name: row.get(name) for name in ROLLOUT_SCHEMA.names}
    reader = RowReader(known, _OUR_COLUMNS, place=place)
    if vocabulary is not None:
        reader.ids("prompt_ids", vocabulary)
        reader.logprobs(len(reader.ids("completion_ids", vocabulary) or ()))
    return known | ({"logprobs": None} if reader.drawn().unrecorded else {})
