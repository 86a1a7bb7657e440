"""Which formats there are, and which one rows have. A format is a small pure function (`shapes`)
from one of a tool's rows to rows of our own names, those of `ColumnMap`, one completion each.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from topr.errors import ConfigError, DataError
from topr.store import shapes
from topr.store.rows import Row, Rows
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
    notes: tuple[str, ...] = field(default=())
    """What the user has to know of completions in this shape."""


def recognise(row: Row) -> str:
    """Return the name of the format that a row has: of those that fit, the one that says most.

    Raises:
        DataError: several fit, none of which says more than the others.

    """
    fitting = [name for name, shape in FORMATS.items() if shape.needs <= set(row)]
    most = [n for n in fitting if not any(FORMATS[n].needs < FORMATS[o].needs for o in fitting)]
    if len(most) > 1:
        shapes = "; ".join(f"{name} ({', '.join(sorted(FORMATS[name].needs))})" for name in most)
        raise DataError(
            f"the columns {', '.join(row)} fit several formats: {shapes}. Say which it is: "
            f"--format {most[0]}"
        )
    return most[0]


def reshape(
    rows: Rows, name: str, beside: Rows | None = None, *, tally: Counter[str] | None = None
) -> Rows:
    """Return rows of our own names; messages name the rows of the source.

    Args:
        rows: as the tool left them.
        name: of the format.
        beside: rows of the second file, where the format joins one.
        tally: gets the number of answers that are no completion as `left_out`.

    Raises:
        ConfigError: no such format, or a second file that is missing or has no use.
        DataError: on the way through: a row that does not have this shape.

    """
    shape = named(name)
    if bool(shape.joined_by) != (beside is not None):
        wanted = "needs the" if shape.joined_by else "takes no"
        raise ConfigError(f"the format {name} {wanted} file of requests: --requests FILE")
    requests = {} if beside is None else {row[shape.joined_by]: row for _, row in beside}
    counted: Counter[str] = Counter() if tally is None else tally

    def read() -> Iterator[tuple[str, Row]]:
        counted["left_out"] = 0  # of this pass
        for place, row in rows:
            try:
                made = list(_shaped(row, name, requests))
            except DataError as error:
                raise DataError(f"{place}: {error}") from error
            counted["left_out"] += made.count(None) or not made
            yield from ((place, one) for one in made if one is not None)

    return Rows(read)


def named(name: str) -> Format:
    """Return a format.

    Raises:
        ConfigError: there is none of that name.

    """
    if name not in FORMATS:
        raise ConfigError(f"there is no format {name!r}, only {', '.join(FORMATS)}")
    return FORMATS[name]


def _shaped(row: Row, name: str, requests: dict[Any, Row]) -> Iterator[Row | None]:
    shape = FORMATS[name]
    if missing := shape.needs - set(row):
        raise DataError(
            f"found the columns {', '.join(row)}, expected {', '.join(sorted(missing))} as well, "
            f"as the format {name} has it. Mend the row, or say another --format"
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
        rows=shapes.same,
    ),
    OURS: Format(
        about="rollouts in topr's own schema, kept as they are",
        needs=frozenset(ROLLOUT_SCHEMA.names) - OPTIONAL_COLUMNS,
        rows=shapes.same,
    ),
    "trl": Format(
        about="prompt, completion, and reward or label if any; text or messages",
        needs=frozenset({"prompt", "completion"}),
        rows=shapes.same,
    ),
    "trl-dpo": Format(
        about="TRL's preferences: prompt, chosen, rejected",
        needs=frozenset({"prompt", "chosen", "rejected"}),
        rows=shapes.pairs,
        notes=("preferences are read as chosen: right, rejected: wrong",),
    ),
    "grouped": Format(
        about="prompt with lists: completions, rewards, logprobs, completion_ids, ...",
        needs=frozenset({"prompt", "completions"}),
        rows=shapes.grouped,
    ),
    "verl": Format(
        about="verl's data with responses, and rewards if any",
        needs=frozenset({"prompt", "reward_model", "responses"}),
        rows=shapes.verl,
        notes=(_REPORTED,),
    ),
    "verl-dump": Format(
        about="verl's rollout_data_dir: input, output, gts, score, step",
        needs=frozenset({"input", "output", "score"}),
        rows=shapes.verl_dump,
        notes=(_REPORTED,),
    ),
    "tinker": Format(
        about="Tinker's datums as JSON: model_input, loss_fn_inputs",
        needs=frozenset({"model_input", "loss_fn_inputs"}),
        rows=shapes.tinker,
        notes=(
            "where a datum has no reward of its own, its advantage is the reward: train with "
            "train.baseline=0",
        ),
    ),
    "openai-batch": Format(
        about="output of OpenAI's batch API (vLLM's run-batch too), with --requests",
        needs=frozenset({"custom_id", "response"}),
        rows=shapes.openai,
        joined_by="custom_id",
        notes=(
            "log-probabilities are kept only beside token ids, and where temperature, top_p and "
            "top_k left the distribution as it was",
        ),
    ),
    "open-instruct": Format(
        about="open-instruct's traces: prompt_tokens, response_tokens, reward, ...",
        needs=frozenset({"prompt_tokens", "response_tokens"}),
        rows=shapes.open_instruct,
    ),
}
"""By name. `topr import --format` takes one; else it is recognised by the first row's columns."""
