"""Which formats there are, and which one rows have. A format is a small pure function (`adapters`)
from one of a tool's rows to rows of our own names, those of `ColumnMap`, one completion each.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from topr.errors import ConfigError, DataError
from topr.interop import adapters, openai_batch
from topr.interop.column_map import USUAL_NAMES, ColumnMap
from topr.interop.row_reader import Row, Rows
from topr.store.schema import OPTIONAL_COLUMNS, ROLLOUT_SCHEMA

OURS = "topr"


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One shape."""

    about: str
    """What it is, for people."""
    needs: frozenset[str]
    """Columns that every such file has, and by which it is recognised."""
    rows: Callable[[Row], Iterator[Row | None]]
    """One of the tool's rows to rows of ours."""
    joined_by: str = ""
    """Column that names the row of a second file, which is then in the row as `request`."""
    chosen_last: bool = False
    """Many files of other shapes have such columns too: recognised where nothing else fits."""
    notes: tuple[str, ...] = field(default=())
    """What the user has to know of completions in this shape."""


def recognise(row: Row, columns: ColumnMap | None = None) -> str:
    """Return the name of the format that a row has: of those that fit, the one that says most.

    A row that fits none but has a list of completions, under whatever name, is `grouped`.

    Raises:
        DataError: several fit, none of which says more than the others.

    """
    fitting = [name for name, f in FORMATS.items() if f.needs <= set(row) and not f.chosen_last]
    most = [n for n in fitting if not any(FORMATS[n].needs < FORMATS[o].needs for o in fitting)]
    if len(most) > 1:
        shapes = "; ".join(f"{name} ({', '.join(sorted(FORMATS[name].needs))})" for name in most)
        raise DataError(
            f"the columns {', '.join(row)} fit several formats: {shapes}. Say which it is: "
            f"--format {most[0]}"
        )
    columns = columns or ColumnMap()
    if most[0] in ("columns", "trl", "grouped"):
        completions = list_of_completions(row, columns)
        if completions:
            return "trl-stepwise" if _are_steps(row, completions) else "grouped"
    written = USUAL_NAMES["completion"] if columns.completion is None else (columns.completion,)
    if most == ["columns"] and "messages" in row and not any(map(row.get, written)):
        return "messages"
    return most[0]


def list_of_completions(row: Row, columns: ColumnMap) -> str | None:
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


def _are_steps(row: Row, completions: str) -> bool:
    """Return whether a list may hold the steps of one solution: beside it, `labels`, or a list that
    says by its name that it is of steps.
    """
    return "labels" in row or any(
        "step" in name.lower() for name in row if isinstance(row[name], list) or name == completions
    )


def _is_chat(value: list[Any]) -> bool:
    return any(isinstance(turn, dict) and "role" in turn for turn in value)


def reshape(
    rows: Rows,
    name: str,
    beside: Rows | None = None,
    *,
    columns: ColumnMap | None = None,
    lists: tuple[str, ...] = (),
    tally: Counter[str] | None = None,
) -> Rows:
    """Return rows of our own names; messages name the rows of the source.

    Args:
        rows: as the tool left them.
        name: of the format.
        beside: rows of the second file, where the format joins one.
        columns: names that the user gave: in `grouped` rows they may be lists.
        lists: further columns that the user gave.
        tally: gets the number of answers that are no completion as `left_out`.

    Raises:
        ConfigError: no such format, or a second file that is missing or has no use.
        DataError: on the way through: a row that does not have this shape.

    """
    shape = named(name)
    if bool(shape.joined_by) != (beside is not None):
        wanted = "needs the" if shape.joined_by else "takes no"
        raise ConfigError(f"the format {name} {wanted} file of requests: --requests FILE")
    requests = {} if beside is None else _by(shape.joined_by, beside)
    counted: Counter[str] = Counter() if tally is None else tally
    if name == "grouped":
        shape = _of_groups(shape, rows.first(), columns or ColumnMap(), lists)

    def read() -> Iterator[tuple[str, Row]]:
        counted["left_out"] = 0  # of this pass
        for place, row in rows:
            try:
                made = list(_shaped(row, name, shape, requests))
            except DataError as error:
                raise DataError(f"{place}: {error}") from error
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise DataError(
                    f"{place}: a value is not what the format {name} has there "
                    f"({type(error).__name__}: {error}). Fix the row, or say another --format"
                ) from error
            counted["left_out"] += made.count(None) or not made
            yield from ((place, one) for one in made if one is not None)

    return Rows(read)


def _by(column: str, rows: Rows) -> dict[str, Row]:
    """Return the rows of a second file by the column that joins them."""
    found = {}
    for place, row in rows:
        if not isinstance(row.get(column), str):
            raise DataError(
                f"requests, {place}: {column} holds {row.get(column)!r:.80}, expected text"
            )
        found[row[column]] = row
    return found


def named(name: str) -> Format:
    """Return a format.

    Raises:
        ConfigError: there is none of that name.

    """
    if name not in FORMATS:
        raise ConfigError(f"there is no format {name!r}, only {', '.join(FORMATS)}")
    return FORMATS[name]


_OF_EACH = ("reward", "finish_reason", "sample", "completion_ids", "logprobs", "reasoning")
"""Fields that may have an entry for each completion of a group."""


def _of_groups(shape: Format, first: Row, columns: ColumnMap, lists: tuple[str, ...]) -> Format:
    """Return the format for groups whose columns have these names."""
    completions = list_of_completions(first, columns)
    given = {getattr(columns, name) for name in _OF_EACH}
    further = tuple(sorted({*given, *lists} - {None, ""}))
    return replace(
        shape,
        needs=shape.needs if completions is None else frozenset({completions}),
        rows=partial(adapters.grouped, completions=completions or "completions", named=further),
    )


def _shaped(row: Row, name: str, shape: Format, requests: dict[Any, Row]) -> Iterator[Row | None]:
    if missing := shape.needs - set(row):
        raise DataError(
            f"found the columns {', '.join(row)}, expected {', '.join(sorted(missing))} as well, "
            f"as the format {name} has it. Fix the row, or say another --format"
        )
    if shape.joined_by:
        key = row[shape.joined_by]
        if key not in requests:
            raise DataError(
                f"no request has the {shape.joined_by} {key!r}: give the file that this batch was "
                "started with"
            )
        row = row | {"request": requests[key]}
    return shape.rows(row)


_REPORTED = "verl writes text without special tokens, so its ids are not those that were sampled"

FORMATS: dict[str, Format] = {
    "columns": Format(
        about="any rows with a prompt and a completion, by usual names or those you give",
        needs=frozenset(),
        rows=adapters.same,
    ),
    OURS: Format(
        about="rollouts in topr's own schema, kept as they are",
        needs=frozenset(ROLLOUT_SCHEMA.names) - OPTIONAL_COLUMNS,
        rows=adapters.same,
    ),
    "trl": Format(
        about="prompt, completion, and reward or label if any; text or messages",
        needs=frozenset({"prompt", "completion"}),
        rows=adapters.same,
    ),
    "messages": Format(
        about="whole chats: messages, the last one the completion, and reward or label if any",
        needs=frozenset({"messages"}),
        rows=adapters.chats,
        chosen_last=True,
    ),
    "trl-dpo": Format(
        about="TRL's preferences: prompt, chosen, rejected",
        needs=frozenset({"prompt", "chosen", "rejected"}),
        rows=adapters.pairs,
        notes=("preferences are read as chosen: right, rejected: wrong",),
    ),
    "trl-stepwise": Format(
        about="a list of one solution's steps, as in TRL's stepwise supervision: refused",
        needs=frozenset(),
        rows=adapters.stepwise,
        chosen_last=True,
    ),
    "grouped": Format(
        about="a problem with lists: completions, rewards, logprobs, completion_ids, ...",
        needs=frozenset({"prompt", "completions"}),
        rows=adapters.grouped,
    ),
    "verl": Format(
        about="verl's data with responses, and rewards if any",
        needs=frozenset({"prompt", "reward_model", "responses"}),
        rows=adapters.verl,
        notes=(_REPORTED,),
    ),
    "verl-dump": Format(
        about="verl's rollout_data_dir: input, output, gts, score, step",
        needs=frozenset({"input", "output", "score"}),
        rows=adapters.verl_dump,
        notes=(_REPORTED,),
    ),
    "tinker": Format(
        about="Tinker's datums as JSON: model_input, loss_fn_inputs",
        needs=frozenset({"model_input", "loss_fn_inputs"}),
        rows=adapters.tinker,
        notes=(
            "where a datum has no reward of its own, its advantage is the reward: train with "
            "train.baseline=0",
        ),
    ),
    "openai-batch": Format(
        about="output of OpenAI's batch API (vLLM's run-batch too), with --requests",
        needs=frozenset({"custom_id", "response"}),
        rows=openai_batch.choices,
        joined_by="custom_id",
        notes=(
            "log-probabilities are kept only beside token ids, and where temperature, top_p and "
            "top_k left the distribution as it was",
        ),
    ),
    "open-instruct": Format(
        about="open-instruct's traces: prompt_tokens, response_tokens, reward, ...",
        needs=frozenset({"prompt_tokens", "response_tokens"}),
        rows=adapters.open_instruct,
    ),
}
"""By name. `topr import --format` takes one; else it is recognised by the first row's columns."""
