"""Which formats there are, and which one rows have. A format is a small pure function (`adapters`)
from one of a tool's rows to rows of our own names, those of `ColumnMap`, one completion each.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from topr.errors import ConfigError, DataError
from topr.interop import adapters, openai_batch
from topr.interop.column_map import USUAL_NAMES, ColumnMap
from topr.interop.row_files import RawRow, RowStream
from topr.store.schema import OPTIONAL_COLUMNS, ROLLOUT_SCHEMA

OURS = "topr"
Adapter = Callable[..., Iterator[RawRow | None]]
"""One of a tool's rows to rows of ours; None stands for an answer that is not a completion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One shape."""

    needs: frozenset[str]
    """Columns that every such file has, and by which it is recognised."""
    rows: Adapter
    needs_requests: bool = False
    """The adapter takes the requests of a batch, by their id, as well."""
    note: str = ""
    """What the user has to know of completions in this shape."""


_VERL_NOTE = "verl writes text without special tokens, so its ids are not those that were sampled"

FORMATS: dict[str, Format] = {
    # Any rows with a prompt and a completion, by usual names or those that the user gives.
    "columns": Format(needs=frozenset(), rows=adapters.same),
    # Rollouts in topr's own schema, kept as they are.
    OURS: Format(needs=frozenset(ROLLOUT_SCHEMA.names) - OPTIONAL_COLUMNS, rows=adapters.same),
    "trl": Format(needs=frozenset({"prompt", "completion"}), rows=adapters.same),
    # Whole chats. Many files of other shapes have them too: taken where nothing else fits.
    "messages": Format(needs=frozenset({"messages"}), rows=adapters.chats),
    "trl-dpo": Format(
        needs=frozenset({"prompt", "chosen", "rejected"}),
        rows=adapters.pairs,
        note="preferences are read as chosen: right, rejected: wrong",
    ),
    # A problem with lists: completions, rewards, logprobs, completion_ids, ...
    "grouped": Format(needs=frozenset({"prompt", "completions"}), rows=adapters.grouped),
    "verl": Format(
        needs=frozenset({"prompt", "reward_model", "responses"}),
        rows=adapters.verl,
        note=_VERL_NOTE,
    ),
    # Lines of verl's rollout_data_dir or validation_data_dir.
    "verl-dump": Format(
        needs=frozenset({"input", "output", "score"}),
        rows=adapters.renamed(
            prompt="input", completion="output", gold="gts", reward="score", iteration="step"
        ),
        note=_VERL_NOTE,
    ),
    "tinker": Format(
        needs=frozenset({"model_input", "loss_fn_inputs"}),
        rows=adapters.tinker,
        note="where a datum has no reward, its advantage is the reward: train with "
        "train.baseline=0",
    ),
    # Output of OpenAI's batch API, and of vLLM's run-batch.
    "openai-batch": Format(
        needs=frozenset({"custom_id", "response"}),
        rows=openai_batch.choices,
        needs_requests=True,
        note="log-probabilities are kept only where there are token ids, and where temperature, "
        "top_p and top_k left the distribution as it was",
    ),
    # Lines that open-instruct's --save_traces writes.
    "open-instruct": Format(
        needs=frozenset({"prompt_tokens", "response_tokens"}),
        rows=adapters.renamed(
            prompt_ids="prompt_tokens",
            completion_ids="response_tokens",
            logprobs="logprobs",
            finish_reason="finish_reason",
            reward="reward",
            gold="ground_truth",
            iteration="step",
        ),
    ),
}
"""By name. `topr import --format` takes one; else it is recognised by the first row's columns."""


def recognise(row: RawRow, columns: ColumnMap | None = None) -> str:
    """Return the name of the format that a row has: of those that fit, the one that needs most.

    A row that fits none but has a list of completions, under whatever name, is `grouped`.

    Raises:
        DataError: several fit, none of which needs more than the others, or the list holds the
            steps of one solution.

    """
    columns = columns or ColumnMap()
    fitting = [n for n, f in FORMATS.items() if f.needs <= set(row) and n != "messages"]
    most = [n for n in fitting if not any(FORMATS[n].needs < FORMATS[o].needs for o in fitting)]
    if len(most) > 1:
        shapes = "; ".join(f"{name} ({', '.join(sorted(FORMATS[name].needs))})" for name in most)
        raise DataError(
            f"the columns {', '.join(row)} fit several formats: {shapes}. Say which it is: "
            f"--format {most[0]}"
        )
    if most[0] in ("columns", "trl", "grouped"):
        completions = list_of_completions(row, columns)
        if completions:
            _refuse_steps(row, completions)
            return "grouped"
    written = USUAL_NAMES["completion"] if columns.completion is None else (columns.completion,)
    if most == ["columns"] and "messages" in row and not any(map(row.get, written)):
        return "messages"
    return most[0]


def list_of_completions(row: RawRow, columns: ColumnMap) -> str | None:
    """Return the column that holds a list of completions: the one that the user names, or a usual
    name or its plural. None where there is none.

    Raises:
        DataError: there are several.

    """
    usual = USUAL_NAMES["completion"]
    plurals = [f"{name}s" for name in usual]
    names = [*plurals, *usual] if columns.completion is None else [columns.completion]
    there = [
        name
        for name in names
        if isinstance(row.get(name), list) and (name in plurals or not _is_chat(row[name]))
    ]
    if len(there) > 1 and there[0] != plurals[0]:
        raise DataError(
            f"the completions may be in any of the columns {', '.join(there)}: say which, "
            "--completion COLUMN"
        )
    return there[0] if there else None


def _is_chat(value: list[Any]) -> bool:
    return any(isinstance(turn, dict) and "role" in turn for turn in value)


def _refuse_steps(row: RawRow, completions: str) -> None:
    """Refuse a list that may hold the steps of one solution: there are `labels` as well, or a list
    whose name says that it is of steps.
    """
    lists = [name for name in row if isinstance(row[name], list) or name == completions]
    if "labels" in row or any("step" in name.lower() for name in lists):
        raise DataError(
            f"the columns {', '.join(row)} are as in TRL's stepwise supervision, where a list "
            "holds the steps of one solution and labels say which steps are right: nothing to "
            "train on as it is. If each entry is a whole completion, say --format grouped; else "
            "join the steps into a column completion, with a reward for the whole"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportSource:
    """Rows of another tool, its format known and its columns found."""

    rows: RowStream
    """In our own names."""
    format: str
    columns: ColumnMap
    tally: Counter[str]
    """`left_out`: answers that are not a completion, after a pass over `rows`."""


def open_source(
    rows: RowStream,
    columns: ColumnMap,
    *,
    format_name: str | None = None,
    requests: RowStream | None = None,
    ends: bool | str | None = None,
) -> ImportSource:
    """Find out what the rows are, and bring them into our own names.

    Args:
        rows: as the tool left them.
        columns: names that the user gave; None in it means the usual ones.
        format_name: of `FORMATS`; defaults to the one that the first row's columns say.
        requests: those of a batch, where the format has them in a second file.
        ends: as in `ImportOptions`: a column of this name may hold a list of a group's entries.

    Raises:
        ConfigError: no such format, or requests that are missing or of no use.
        DataError: the format cannot be told, a row does not have it, or a column is not there.

    """
    name = recognise(rows.first(), columns) if format_name is None else format_name
    if name not in FORMATS:
        raise ConfigError(f"there is no format {name!r}, only {', '.join(FORMATS)}")
    form, tally = FORMATS[name], Counter[str]()
    if form.needs_requests != (requests is not None):
        wanted = "needs the" if form.needs_requests else "takes no"
        raise ConfigError(f"the format {name} {wanted} file of requests: --requests FILE")
    if requests is not None:
        form = replace(form, rows=partial(form.rows, requests=openai_batch.by_id(requests)))
    if name == "grouped":
        form = _of_lists(form, rows.first(), columns, ends)
        columns = replace(columns, completion=None)  # no longer a list
    shaped = RowStream(lambda: _shaped(rows, name, form, tally))
    if not shaped.column_names and tally["left_out"]:
        raise DataError(
            f"nothing is left to import: of {tally['left_out']} answers none is a completion "
            "(failed requests, tool calls, filtered ones, empty lists). Look at the first row"
        )
    if name != OURS:
        columns = columns.resolve(shaped, or_ids=True)
    return ImportSource(rows=shaped, format=name, columns=columns, tally=tally)


_OF_EACH = ("reward", "finish_reason", "sample", "completion_ids", "logprobs", "reasoning")
"""Fields that may have an entry for each completion of a group."""


def _of_lists(form: Format, first: RawRow, columns: ColumnMap, ends: bool | str | None) -> Format:
    """Return the format of groups whose lists have these names."""
    completions = list_of_completions(first, columns)
    named = {getattr(columns, one) for one in _OF_EACH} | {ends}
    adapter = partial(
        adapters.grouped,
        completions=completions or "completions",
        named=tuple(sorted(one for one in named if one and isinstance(one, str))),
    )
    needs = form.needs if completions is None else frozenset({completions})
    return replace(form, needs=needs, rows=adapter)


def _shaped(
    rows: RowStream, name: str, form: Format, tally: Counter[str]
) -> Iterator[tuple[str, RawRow]]:
    """Yield rows of our own names; places are those of the tool's rows."""
    tally["left_out"] = 0  # of this pass
    for place, row in rows:
        try:
            if missing := form.needs - set(row):
                raise DataError(
                    f"found the columns {', '.join(row)}, expected {', '.join(sorted(missing))} as "
                    f"well, as the format {name} has it. Fix the row, or say another --format"
                )
            made = list(form.rows(row))
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise DataError(
                f"{place}: a value is not what the format {name} has there "
                f"({type(error).__name__}: {error}). Fix the row, or say another --format"
            ) from error
        tally["left_out"] += made.count(None) or not made
        yield from ((place, one) for one in made if one is not None)
