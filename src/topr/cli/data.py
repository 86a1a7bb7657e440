"""`topr import`, `topr export`, `topr compare`, `topr report`."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from topr.cli.console import ConsoleProgress, say
from topr.cli.sources import hub_or_path
from topr.errors import ConfigError
from topr.records import SamplingParams, Several

if TYPE_CHECKING:
    from topr.interop import ImportOptions, ImportSource, RowStream
    from topr.tokenization.ends import Finish

Source = Annotated[
    str,
    typer.Argument(
        help="File (JSONL, JSON, CSV or parquet; also .gz), folder of files, or hub dataset."
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="columns, topr, trl, trl-dpo, messages, grouped, verl, verl-dump, tinker, "
        "openai-batch or open-instruct. By default the columns of the first row decide.",
    ),
]
Requests = Annotated[
    Path | None, typer.Option(parser=hub_or_path, help="Input file of an OpenAI batch.")
]
Escape = Annotated[
    bool,
    typer.Option(
        "--escape-special-tokens",
        "--literal",
        help="Put a space into special tokens in the text of prompts, so that they stay text.",
    ),
]
Ended = Annotated[
    str | None,
    typer.Option(
        help="Whether completions without a finish reason ended by themselves: yes, no, or the "
        "name of a column of true and false. By default completions of text did, and completions "
        "of token ids did if their last token is an end token.",
    ),
]
FinishReasons = Annotated[
    list[str] | None,
    typer.Option(
        help="WORD=stop, WORD=length or WORD=drop: the meaning of a finish reason that topr does "
        "not know. Rows with a WORD=drop are left out. Can be given several times.",
    ),
]
ReasoningMarks = Annotated[
    str,
    typer.Option(
        help="How the model writes its reasoning, such as "
        "'<think>\\n{reasoning}\\n</think>\\n\\n'. By default as in the chat template.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("import")(import_)
    app.command()(export)
    app.command()(compare)
    app.command()(report)


def _help(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text)


def import_(
    source: Source,
    output: Annotated[Path, _help("Directory to write rollouts to.", "--output", "-o")],
    tokenizer: Annotated[str, _help("Model (directory, hub name, GGUF file) to tokenise for.")],
    format_: Format = None,
    subset: Annotated[str | None, _help("Configuration of a hub dataset.")] = None,
    split: Annotated[str | None, _help("Split of a hub dataset.")] = None,
    requests: Requests = None,
    prompt: Annotated[str | None, _help("Column of prompts; nested columns as a.b.")] = None,
    completion: Annotated[str | None, _help("Column of completions.")] = None,
    gold: Annotated[str | None, _help("Column of reference answers.")] = None,
    problem_id: Annotated[str | None, _help("Column of the problems' names.")] = None,
    reward: Annotated[str | None, _help("Column of rewards or labels; '' ignores it.")] = None,
    template: Annotated[str, _help("Text around prompts: 'Q: {prompt}\\nA:'.")] = "{prompt}",
    escape_special_tokens: Escape = False,
    ends: Ended = None,
    finish_reason: FinishReasons = None,
    several_golds: Annotated[Several, _help("Lists of reference answers.")] = Several.REFUSE,
    reasoning: Annotated[str | None, _help("Column of reasoning; '' ignores it.")] = None,
    reasoning_marks: ReasoningMarks = "",
    drop_reasoning: Annotated[
        bool, _help("Leave out reasoning where there are no token ids.", "--drop-reasoning")
    ] = False,
    model: Annotated[str, _help("Model that wrote the completions.")] = "unknown",
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature.")] = 1.0,
    top_p: Annotated[float, _help("Top-p of the sampling; 1: off.")] = 1.0,
    top_k: Annotated[int, _help("Top-k of the sampling; 0: off.")] = 0,
) -> None:
    """Turn completions of other tools into rollouts, tokenised once."""
    from topr.interop import ColumnMap, ImportOptions, RowStream, open_source

    columns = ColumnMap(
        prompt=prompt, completion=completion, gold=gold, problem_id=problem_id, reward=reward,
        reasoning=reasoning,
    )  # fmt: skip
    options = ImportOptions(
        model=model, sampling=SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k),
        template=_lines(template), ends={"yes": True, "no": False}.get(ends or "", ends),
        finish_words=_finish_words(finish_reason or []), several_golds=several_golds,
        escape_special_tokens=escape_special_tokens, reasoning_marks=_lines(reasoning_marks),
        drop_reasoning=drop_reasoning,
    )  # fmt: skip
    rows, origin = _source(source, subset, split)
    asked = None if requests is None else RowStream.open(requests)
    found = open_source(rows, columns, format_name=format_, requests=asked, ends=options.ends)
    say(f"format: {found.format}", found.columns.describe())
    origin += [] if requests is None else _origin(requests)
    _import(found, output, source, origin, tokenizer, options)


def _import(
    rows: "ImportSource",
    output: Path,
    source: str,
    origin: list[Any],
    tokenizer: str,
    options: "ImportOptions",
) -> None:
    """Write the rollouts, and say what was done."""
    from topr.config import ModelConfig
    from topr.interop import report_import, write_rollouts
    from topr.models.facts import named_eos_ids, named_vocabulary
    from topr.models.gguf import plain_model
    from topr.models.loading import load_tokenizer
    from topr.stages.common import stage_fingerprint
    from topr.tokenization.digest import tokenizer_digest
    from topr.tokenization.ends import Ends

    named = plain_model(ModelConfig(path=tokenizer), ConsoleProgress())
    loaded = load_tokenizer(named)
    options = replace(
        options,
        eos_ids=sorted(named_eos_ids(named, loaded)),
        vocabulary=named_vocabulary(named, loaded),
    )
    say(f"{'ends':<15} {', '.join(Ends(loaded, options.eos_ids).names)}")
    words = {word: finish.value for word, finish in options.finish_words.items()}
    manifest = write_rollouts(
        rows,
        output,
        tokenizer=loaded,
        fingerprint=stage_fingerprint(
            "import", origin, rows.format, asdict(rows.columns), tokenizer_digest(loaded),
            asdict(options) | {"finish_words": words},
        ),
        details={"source": source, "tokenizer": tokenizer},
        options=options,
    )  # fmt: skip
    say(f"{manifest.rows} rollouts in {output}", *report_import(manifest, rows.columns.reward))


def _source(name: str, subset: str | None, split: str | None) -> "tuple[RowStream, list[Any]]":
    """Return the rows of a file, a folder or a hub dataset's split, and what identifies them."""
    from topr import hub
    from topr.interop import RowStream

    if subset is None and split is None:
        path = hub.local(name)
        return RowStream.open(path), _origin(path)
    named = None if Path(name).exists() else hub.parse(name)
    if named is None or named.file:
        raise ConfigError(
            f"--subset and --split are of hub datasets, and {name} is a file: leave them out, or "
            "give the name of a hub dataset, owner/name"
        )
    table = hub.table(named.repo, subset, split or "train", revision=named.revision)
    return RowStream.of(table), [(named.repo, subset, split, table._fingerprint)]


def _origin(path: Path) -> list[Any]:
    """Return what identifies the rows of a file or folder."""
    from topr.interop import data_files
    from topr.stages.common import data_fingerprint

    return [data_fingerprint(file) for file in data_files(path)]


def _lines(text: str) -> str:
    """Return an option's text with the line breaks that a shell writes as two characters."""
    return text.replace("\\n", "\n")


def _finish_words(given: list[str]) -> "dict[str, Finish]":
    """Return what `--finish-reason WORD=MEANING` says."""
    from topr.tokenization.ends import Finish

    meanings = {finish.value: finish for finish in Finish}
    words = {}
    for text in given:
        word, _, meaning = text.rpartition("=")
        if not word or meaning not in meanings:
            raise ConfigError(
                f"--finish-reason {text!r} is not WORD=MEANING, with one of the meanings "
                f"{', '.join(meanings)}: write for example abort=drop"
            )
        words[word] = meanings[meaning]
    return words


def export(
    source: Annotated[
        Path, typer.Argument(parser=hub_or_path, help="Rollouts: a directory or one parquet file.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .jsonl, .json, .csv, .parquet.")
    ],
    format_: Annotated[
        str,
        typer.Option("--format", help="topr, grouped, trl, trl-kto, trl-dpo or verl."),
    ],
    data_source: Annotated[
        str, typer.Option(help="Name of the data set, by which verl finds its reward function.")
    ] = "topr",
) -> None:
    """Write rollouts in the shape that another tool loads. Nothing is overwritten."""
    from topr.interop import check_output, export_rollouts, write_rows
    from topr.store import read_table

    check_output(output)
    found = export_rollouts(read_table(source), format_, data_source=data_source)
    write_rows(output, found.table)
    say(f"{found.table.num_rows} rows in {output}")
    if found.without_reward:
        say(f"{found.without_reward} completions without a reward are left out")
    if found.questions:
        say(
            f"{found.questions} prompts are written as their question only, for verl's own chat "
            "template: a system message, earlier turns, examples and instructions that "
            "the completions were sampled with are not in the file"
        )
    if found.truncated:
        say(
            f"{found.truncated} completions are truncated (finish_reason length), and a trainer "
            "that reads text may add an end token to them: filter them out, or mask them"
        )


def compare(
    a: Annotated[Path, typer.Argument(help="A run, an evaluation.json, or its directory.")],
    b: Annotated[Path, typer.Argument(help="Another, on the same problems.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Compare two models on the same problems, paired: a minus b with 95 % intervals.

    Of a run it is the model that the run kept, or its last one.
    """
    from topr.evaluation import compare as paired
    from topr.evaluation import read_evaluation
    from topr.runs.directory import evaluation_file

    files = [evaluation_file(path) for path in (a, b)]
    results = [read_evaluation(file) for file in files]
    names = [result.name for result in results]
    if names[0] == names[1]:  # two runs have models of one name: told apart by where they are
        results = [replace(r, name=str(p)) for r, p in zip(results, (a, b), strict=True)]
    differences = paired(*results)
    if as_json:
        typer.echo(json.dumps([asdict(found) for found in differences], indent=2))
        return
    for found in differences:
        low, high = found.ci
        say(
            f"{found.a} - {found.b}: {found.metric} {100 * found.difference:+.1f} points "
            f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        )


def report(
    directory: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Run directories, finished or not."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Defaults to DIR/report.html, of several runs to report.html."
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML file that shows a run, or compares several."""
    from topr.report import write_report

    runs = directory[0] if len(directory) == 1 else directory
    say(f"report: {write_report(runs, output)}")
