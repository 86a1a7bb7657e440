"""What another tool left becomes a directory of rollouts, a shard at a time.

`formats` knows the tools' shapes and `importers` what tokenising means; here the two are put
together, files are written, and the manifest says what was done to the rows.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from topr.distribution import distribution
from topr.errors import DataError, RunDirectoryError
from topr.interop.column_map import TEXT_OR_IDS, ColumnMap
from topr.interop.formats import FORMATS, OURS, recognise, reshape
from topr.interop.import_options import Reading
from topr.interop.importers import import_rollouts
from topr.interop.row_reader import Row, Rows
from topr.interop.row_values import changes_unrecorded
from topr.records import SamplingParams
from topr.store.manifest import Manifest, begin, is_begun, read_manifest, write_manifest
from topr.store.schema import ROLLOUT_SCHEMA, check_numbers, conform, rollouts_to_table
from topr.store.shards import shard_paths, write_shard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD_ROWS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """Rows of another tool, its format known and its columns found."""

    rows: Rows
    """In our own names."""
    format: str
    columns: ColumnMap
    left_out: Counter[str]
    """`left_out`: rows without a completion, once `rows` was gone through."""


def incoming(
    rows: Rows,
    columns: ColumnMap,
    *,
    format_name: str | None = None,
    beside: Rows | None = None,
    ends: bool | str | None = None,
) -> Incoming:
    """Find out what the rows are.

    Args:
        rows: as the tool left them.
        columns: names that the user gave; None in it means the usual ones.
        format_name: of `FORMATS`; by default found by the first row's columns.
        beside: the requests of a batch.
        ends: as in `Reading`: a column of this name may hold a list of a group's entries.

    Raises:
        ConfigError: no such format, or requests that are missing or of no use.
        DataError: the format cannot be told, or a column is not there.

    """
    name = recognise(rows.first(), columns) if format_name is None else format_name
    tally: Counter[str] = Counter()
    lists = (ends,) if isinstance(ends, str) else ()
    shaped = reshape(rows, name, beside, columns=columns, lists=lists, tally=tally)
    if not shaped.column_names and tally["left_out"]:
        raise DataError(
            f"nothing is left to import: of {tally['left_out']} answers none is a completion "
            "(failed requests, tool calls, filtered ones, empty lists). Look at the first row"
        )
    if name == "grouped":
        columns = replace(columns, completion=None)  # no longer a list
    if name != OURS:
        columns = columns.resolve(shaped, required=TEXT_OR_IDS)
    return Incoming(rows=shaped, format=name, columns=columns, left_out=tally)


def write_rollouts(
    given: Incoming,
    directory: Path,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    model: str,
    mark: str,
    details: dict[str, Any],
    sampling: SamplingParams | None = None,
    reading: Reading | None = None,
) -> Manifest:
    """Write the rollouts and return the manifest. Killed, the same call resumes.

    The manifest's details are `details` and: `format`; `tokenized`, how many prompts and
    completions had no ids and were tokenised here; `decoded`, how many completions had ids alone;
    `ends_assumed`, how many did not say how they ended; `ended_by_id` and `cut_off_by_id`, of how
    many their last id said it; `stopped_without_end`, of how many ids hold no end though they
    ended; `cut_at_end`, how many continued after an end that they spelled out;
    `reasoning_rebuilt` and `reasoning_dropped`; `without_logprobs`, and `logprobs_left_out` of
    them; `graded`; `left_out`, rows that hold no completion; `dropped`, those whose finish reason
    the user says to leave out.

    Args:
        given: what came in.
        directory: where the shards go.
        tokenizer: of the model to be trained.
        model: behaviour model of rows that do not name one.
        mark: fingerprint of the result.
        details: what else the manifest is to say.
        sampling: as in `import_rollouts`.
        reading: how rows are read.

    Raises:
        RunDirectoryError: the directory holds something else.
        DataError: a row does not hold what it should.

    """
    if shard_paths(directory) and not (is_begun(directory) or read_manifest(directory)):
        raise RunDirectoryError(
            f"{directory} holds rollouts already, which are not overwritten: write elsewhere"
        )
    with begin(directory, "import", mark) as done:
        if done is not None:
            return done
        tally: Counter[str] = Counter()
        reading = reading or Reading()
        if given.format == OURS:
            known = reading.vocabulary or len(tokenizer)
            for _ in _own(given.rows, known):
                pass  # what is refused is refused before anything is written
            tables = _own(given.rows, known)
        else:
            rollouts = import_rollouts(
                given.rows, columns=given.columns, tokenizer=tokenizer, model=model,
                sampling=sampling, reading=reading, tally=tally,
            )  # fmt: skip
            chunks = iter(lambda: list(islice(rollouts, SHARD_ROWS)), [])
            tables = (rollouts_to_table(chunk) for chunk in chunks)
        found: Counter[str] = Counter()
        for index, table in enumerate(tables):
            if not (directory / f"part-{index:05d}.parquet").exists():
                write_shard(directory, index, table)
            found["rows"] += table.num_rows
            found["graded"] += table.num_rows - table["grade"].null_count
            found["without_logprobs"] += table["logprobs"].null_count
        manifest = Manifest(
            stage="import",
            fingerprint=mark,
            rows=found["rows"],
            files=tuple(path.name for path in shard_paths(directory)),
            details=details
            | _details(given, tally, found)
            | {"ends": "no" if reading.ends is False else "yes"},
        )
        write_manifest(directory, manifest)
        return manifest


def report(manifest: Manifest, reward: str | None) -> list[str]:
    """Return what the user has to know of imported rollouts: what was done to them, whether they
    are graded, and what training on them takes.
    """
    found, rows = manifest.details, manifest.rows
    tokenized, kept = found["tokenized"]["completions"], rows - found["tokenized"]["completions"]
    lines = []
    if tokenized:
        lines.append(
            f"{tokenized} completions were text alone: tokenised here, once, with an end where "
            "they ended"
        )
    if kept:
        lines.append(f"{kept} completions came with token ids, which are kept")
    if found["ends_assumed"]:
        taken = (
            "cut off" if found.get("ends") == "no" else "ended by themselves (--ends no: cut off)"
        )
        lines.append(f"{found['ends_assumed']} do not say how they ended: taken as {taken}")
    ended, cut_off = found["ended_by_id"], found["cut_off_by_id"]
    if ended or cut_off:
        lines.append(
            f"{ended + cut_off} with token ids do not say how they ended: {ended} end with the "
            f"tokenizer's end of a text or turn; {cut_off} do not, and count as cut off "
            "(finish_reason length). Where a stop string ended them, import with --ends yes"
        )
    if found.get("logprobs_left_out"):
        lines.append(
            f"{found['logprobs_left_out']} were sampled with a penalty, min_p or the like: their "
            "log-probabilities are those of another distribution than training scores, and left out"
        )
    if found.get("stopped_without_end"):
        lines.append(
            f"{found['stopped_without_end']} say that they ended by themselves, and their ids hold "
            "no end: right where a stop string ended them; where the tool leaves the end out, the "
            "model is not taught to end"
        )
    if found.get("cut_at_end"):
        lines.append(
            f"{found['cut_at_end']} continue after an end that their text spells out: what follows "
            "it is left out"
        )
    if found.get("reasoning_rebuilt"):
        lines.append(
            f"{found['reasoning_rebuilt']} came with what the model thought apart: put back before "
            "the text, as the model writes it"
        )
    if found.get("reasoning_dropped"):
        lines.append(
            f"{found['reasoning_dropped']} are without what the model thought, as you wanted: they "
            "are not what it wrote, and log mu recomputed on them is not that of their sampling"
        )
    if found.get("dropped"):
        lines.append(f"{found['dropped']} are left out for their finish reason, as you said")
    if found["left_out"]:
        lines.append(
            f"{found['left_out']} answers are no completion (failed requests, tool calls, filtered "
            "ones): left out"
        )
    lines += FORMATS[found["format"]].notes
    if found["graded"]:
        verdicts = (
            ", as -1 where it is wrong and +1 where it is right" if found.get("verdicts") else ""
        )
        lines.append(
            f"{found['graded']} have the grade that column {reward or 'grade'} says{verdicts}; "
            "with --reward '' none would, and `topr grade` can grade them"
        )
    else:
        lines.append("none is graded: `topr grade` does that")
    if found["without_logprobs"]:
        lines.append(
            f"{found['without_logprobs']} of {rows} have no log-probabilities: train on them with "
            "train.behavior_logprobs=recompute"
        )
    return lines


def _details(given: Incoming, tally: Counter[str], found: Counter[str]) -> dict[str, Any]:
    return {
        "format": given.format,
        "tokenized": {
            "prompts": tally["prompts_tokenized"],
            "completions": tally["completions_tokenized"],
        },
        "decoded": tally["completions_decoded"],
        "ends_assumed": tally["ends_assumed"],
        "ended_by_id": tally["ended_by_id"],
        "cut_off_by_id": tally["cut_off_by_id"],
        "stopped_without_end": tally["stopped_without_end"],
        "cut_at_end": tally["cut_at_end"],
        "reasoning_rebuilt": tally["reasoning_rebuilt"],
        "reasoning_dropped": tally["reasoning_dropped"],
        "dropped": tally["dropped"],
        "without_logprobs": found["without_logprobs"],
        "logprobs_left_out": tally["logprobs_left_out"],
        "graded": found["graded"],
        "verdicts": bool(tally["verdicts"]),
        "left_out": given.left_out["left_out"],
    }


def _own(rows: Rows, vocabulary: int) -> Iterator[pa.Table]:
    """Yield tables of rows that are rollouts already; a column that is not ours is left out."""
    stream = iter(rows)
    while chunk := list(islice(stream, SHARD_ROWS)):
        where = f"{chunk[0][0]} to {chunk[-1][0]}"
        try:
            table = pa.Table.from_pylist([_known(*each) for each in chunk], ROLLOUT_SCHEMA)
        except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError) as error:
            raise DataError(
                f"{where}: a value does not fit topr's schema ({error}). Fix it, or import text "
                "with --format trl"
            ) from error
        table = conform(table, where=where)
        check_numbers(table, vocabulary, where=where)
        yield table


def _known(place: str, row: Row) -> Row:
    known = {name: row.get(name) for name in ROLLOUT_SCHEMA.names}
    sampling = row.get("sampling")
    try:
        if isinstance(sampling, dict) and distribution(sampling) and changes_unrecorded(sampling):
            known["logprobs"] = None
    except DataError as error:
        raise DataError(f"{place}: sampling: {error}") from error
    return known
