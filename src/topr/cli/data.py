"""`topr import`, `topr export`, `topr compare`, `topr report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from topr.cli.console import ConsoleProgress, out
from topr.cli.sources import hub_or_path
from topr.records import Several

if TYPE_CHECKING:
    from topr.interop import Rows
    from topr.tokenization.ends import Finish


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("import")(import_)
    app.command()(export)
    app.command()(compare)
    app.command()(report)


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="JSONL, JSON, CSV or parquet (also .gz), a folder of them, or a hub name.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of rollouts to write.")],
    tokenizer: Annotated[
        str, typer.Option(help="Model (directory, hub name, GGUF file) whose tokenizer is used.")
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="columns, topr, trl, trl-dpo, grouped, verl, verl-dump, tinker, openai-batch or "
            "open-instruct. Defaults to what the columns of the first row say.",
        ),
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a hub dataset.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of a hub dataset. Without one, a file of it is read."),
    ] = None,
    requests: Annotated[
        Path | None, typer.Option(parser=hub_or_path, help="Input file of an OpenAI batch.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Column of the prompts; a nested one is named a.b.")
    ] = None,
    completion: Annotated[str | None, typer.Option(help="Column of the completions.")] = None,
    gold: Annotated[str | None, typer.Option(help="Column of the gold answers.")] = None,
    problem_id: Annotated[str | None, typer.Option(help="Column that names problems.")] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="Column of rewards or labels; '' for none, to grade them with topr."),
    ] = None,
    template: Annotated[
        str, typer.Option(help="Text around a prompt, such as 'Question: {prompt}\\nAnswer:'.")
    ] = "{prompt}",
    literal: Annotated[
        bool, typer.Option("--literal", help="Take special tokens in prompts' text apart.")
    ] = False,
    ends: Annotated[
        str | None,
        typer.Option(
            help="Whether completions without a finish reason ended by themselves: yes, no, or a "
            "column of true and false. By default text has ended, and token ids have where the "
            "last one is an end."
        ),
    ] = None,
    finish_reason: Annotated[
        list[str] | None,
        typer.Option(
            help="WORD=stop, WORD=length or WORD=drop: the meaning of a finish reason that topr "
            "does not know; drop leaves such rows out. May be given several times."
        ),
    ] = None,
    several_golds: Annotated[
        Several, typer.Option(help="What a list of several gold answers means: any is right?")
    ] = Several.REFUSE,
    reasoning: Annotated[
        str | None,
        typer.Option(help="Column of what was thought before the completion; '' for none."),
    ] = None,
    reasoning_marks: Annotated[
        str,
        typer.Option(
            help="How the model writes its thoughts, such as '<think>\\n{reasoning}\\n</think>"
            "\\n\\n'. Defaults to what the chat template says."
        ),
    ] = "",
    drop_reasoning: Annotated[
        bool, typer.Option("--drop-reasoning", help="Leave thoughts out where there are no ids.")
    ] = False,
    model: Annotated[str, typer.Option(help="Who wrote the completions.")] = "unknown",
    temperature: Annotated[float, typer.Option(min=0, help="They were sampled at.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="They were sampled with; 1: off.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="They were sampled with; 0: off.")] = 0,
) -> None:
    """Turn completions that other tools made into rollouts, tokenised once."""
    from topr.config import ModelConfig
    from topr.interop import (
        ColumnMap,
        Reading,
        Rows,
        data_files,
        incoming,
        report_import,
        write_rollouts,
    )
    from topr.models.gguf import plain_model
    from topr.models.loading import load_tokenizer, named_eos_ids, named_vocabulary
    from topr.records import SamplingParams
    from topr.stages.common import fingerprint
    from topr.tokenization.ends import Ends

    given = ColumnMap(
        prompt=prompt,
        completion=completion,
        gold=gold,
        problem_id=problem_id,
        reward=reward,
        reasoning=reasoning,
    )
    words = _finish_words(finish_reason or [])
    ended = ends if ends is None else {"yes": True, "no": False}.get(ends, ends)
    beside = None if requests is None else Rows.open(requests)
    rows, stamps = _source(source, subset, split)
    found = incoming(rows, given, format_name=format_, beside=beside, ends=ended)
    out.print(f"format: {found.format}")
    out.print(escape(found.columns.describe()))
    stamps += [_stamp(file) for file in (data_files(requests) if requests else ())]
    named = plain_model(ModelConfig(path=tokenizer), ConsoleProgress())
    loaded = load_tokenizer(named)
    reading = Reading(
        template=_lines(template),
        ends=ended,
        finish_words=words,
        eos_ids=named_eos_ids(named, loaded),
        vocabulary=named_vocabulary(named, loaded),
        literal=literal,
        several_golds=several_golds,
        reasoning_marks=_lines(reasoning_marks),
        drop_reasoning=drop_reasoning,
    )
    out.print(escape(f"{'ends':<15} {', '.join(Ends(loaded, reading.eos_ids).names)}"))
    said = (found.format, found.columns.describe(), sorted(reading.eos_ids))
    options = (tokenizer, *said, template, literal, ends, model, sorted(finish_reason or []))
    answers = (several_golds, reasoning_marks, drop_reasoning)
    sampling = (temperature, top_p, top_k)
    manifest = write_rollouts(
        found,
        output,
        tokenizer=loaded,
        model=model,
        mark=fingerprint(stamps, options, answers, sampling),
        details={"source": source, "tokenizer": tokenizer},
        sampling=SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k),
        reading=reading,
    )
    out.print(f"{manifest.rows} rollouts in {escape(str(output))}")
    for line in report_import(manifest, found.columns.reward):
        out.print(escape(line), soft_wrap=True)


def _source(name: str, subset: str | None, split: str | None) -> "tuple[Rows, list[Any]]":
    """Return the rows of a file, a folder or a hub dataset's split, and what they are known by."""
    from topr import hub
    from topr.errors import ConfigError
    from topr.interop import Rows, data_files

    if subset is None and split is None:
        path = hub.local(name)
        return Rows.open(path), [_stamp(file) for file in data_files(path)]
    named = None if Path(name).exists() else hub.parse(name)
    if named is None or named.file:
        raise ConfigError(
            f"--subset and --split are of hub datasets, and {name} is a file: leave them out, or "
            "give the name of a hub dataset, owner/name"
        )
    table = hub.table(named.repo, subset, split or "train", revision=named.revision)
    return Rows.of(table), [(named.repo, subset, split, table._fingerprint)]


def _lines(text: str) -> str:
    """Return an option's text with the line breaks that a shell writes as two characters."""
    return text.replace("\\n", "\n")


def _finish_words(given: list[str]) -> "dict[str, Finish]":
    """Return what `--finish-reason WORD=MEANING` says."""
    from topr.errors import ConfigError
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
        str, typer.Option(help="verl's name of the data set, which finds its reward function.")
    ] = "topr",
) -> None:
    """Write rollouts in the shape that another tool loads. Nothing is overwritten."""
    from topr.interop import check_output, export_rollouts, write_rows
    from topr.store import read_table

    check_output(output)
    found = export_rollouts(read_table(source), format_, data_source=data_source)
    write_rows(output, found.table)
    out.print(f"{found.table.num_rows} rows in {escape(str(output))}")
    if found.without_reward:
        out.print(f"{found.without_reward} completions without a reward are left out")
    if found.questions:
        out.print(
            f"{found.questions} prompts are given by their question alone, for verl's own chat "
            "template: a system message, earlier turns, examples and instructions that "
            "the completions were drawn with are not in the file",
            soft_wrap=True,
        )
    if found.cut_off:
        out.print(
            f"{found.cut_off} completions were cut off (finish_reason length), and a trainer that "
            "reads text may add an end to them: leave them out there, or have them masked",
            soft_wrap=True,
        )


def _stamp(file: Path) -> tuple[str, int, int]:
    stat = file.stat()
    return str(file.resolve()), stat.st_size, stat.st_mtime_ns


def compare(
    a: Annotated[Path, typer.Argument(help="An evaluation.json, or the directory that holds it.")],
    b: Annotated[Path, typer.Argument(help="Another, on the same problems.")],
) -> None:
    """Compare two models on the same problems, paired: a minus b with 95 % intervals."""
    from topr.evaluation import RESULT_FILE, read_evaluation
    from topr.evaluation import compare as paired

    results = [read_evaluation(path / RESULT_FILE if path.is_dir() else path) for path in (a, b)]
    for found in paired(*results):
        low, high = found.ci
        out.print(
            escape(
                f"{found.a} - {found.b}: {found.metric} {100 * found.difference:+.1f} points "
                f"[{100 * low:+.1f}, {100 * high:+.1f}]"
            )
        )


def report(
    directory: Annotated[Path, typer.Argument(help="A run directory, finished or not.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Elsewhere than DIR/report.html.")
    ] = None,
) -> None:
    """Write one self-contained HTML file that shows a run."""
    from topr.report import write_report

    out.print(f"report: {escape(str(write_report(directory, output)))}")
