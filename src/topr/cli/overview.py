"""How `topr --help` groups the commands, and the examples in the help of each."""

from collections.abc import Mapping

import typer

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Run": ("run", "init", "recipes"),
    "One stage at a time": ("generate", "grade", "curate", "train", "eval"),
    "Verifiers": ("verify", "vote"),
    "Look at data and results": ("advise", "report", "compare", "lineage"),
    "Other tools and the hub": ("import", "export", "card", "push"),
    "Research": ("study", "results"),
    "About topr": ("schema", "env"),
}
"""Panels of `topr --help`, and their commands in order."""

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "run": (
        "topr run quickstart -o runs/quickstart",
        "topr run my.yaml -o runs/mine train.learning_rate=1e-6 --dry-run",
    ),
    "init": ("topr init my-task", "topr init my-gsm8k --task gsm8k"),
    "recipes": ("topr recipes", "topr recipes gsm8k-small > my.yaml"),
    "generate": (
        "topr generate gsm8k-small -o rollouts",
        "topr generate my.yaml -o rollouts -m ./model generate.n=16",
    ),
    "grade": (
        "topr grade rollouts --task gsm8k -o graded",
        "topr grade completions.jsonl --task math -o graded.jsonl",
    ),
    "curate": (
        "topr curate graded -o dataset curate.steps=[drop_duplicates,drop_no_signal]",
        "topr curate graded -o positives curate.steps=positives",
    ),
    "train": (
        "topr train dataset -m ./model -o trained train.learning_rate=1e-6",
        "topr train graded.jsonl -m Qwen/Qwen2.5-0.5B-Instruct -o trained train.max_steps=100",
    ),
    "eval": (
        "topr eval gsm8k-small -m trained/model -o evaluation evaluate.n=4",
        "topr eval graded.jsonl -o scores --json",
    ),
    "verify": (
        "topr verify graded -m ./verifier -o scored generate.n=8",
        "topr verify solutions.jsonl -m ./verifier -o scored --question problem",
    ),
    "vote": ("topr vote scored", "topr vote answers.jsonl --score reward --problem question_id"),
    "advise": (
        "topr advise runs/quickstart/iteration-01/graded",
        "topr advise graded.jsonl --json",
    ),
    "report": ("topr report runs/quickstart", "topr report runs/a runs/b -o both.html"),
    "compare": (
        "topr compare runs/a runs/b",
        "topr compare base/evaluation.json trained/evaluation.json --json",
    ),
    "lineage": ("topr lineage runs/quickstart", "topr lineage runs/quickstart --json"),
    "import": (
        "topr import vllm-output.jsonl --tokenizer Qwen/Qwen2.5-0.5B-Instruct -o rollouts",
        "topr import rows.jsonl --tokenizer ./model -o rollouts --completion output",
    ),
    "export": (
        "topr export runs/quickstart/iteration-01/dataset -o rows.jsonl --format topr",
        "topr export graded -o pairs.jsonl --format trl-dpo",
    ),
    "card": ("topr card runs/quickstart", "topr card graded"),
    "push": (
        "topr push runs/quickstart me/my-model --dry-run",
        "topr push graded me/my-rollouts --private",
    ),
    "study": ("topr study", "topr study leaderboard -o runs/leaderboard seeds=[0]"),
    "results": (
        "topr results runs/leaderboard -o results.md",
        "topr results runs/leaderboard runs/baseline -o docs/results.md",
    ),
    "schema": ("topr schema > recipe.schema.json", "topr schema | jq '.properties | keys'"),
    "env": ("topr env", "topr env > environment.json"),
}
"""Two for each command."""


def arrange(app: typer.Typer) -> None:
    """Put registered commands into groups, with examples at the end of their help."""
    group = {name: title for title, names in GROUPS.items() for name in names}
    order = list(group)
    for command in app.registered_commands:
        name = command.name = command.name or command.callback.__name__  # type: ignore[union-attr]
        command.rich_help_panel = group[name]
        lines = "\n\n".join(f"  {example}" for example in EXAMPLES[name])
        command.epilog = f"Examples:\n\n{lines}".replace("[", "\\[")
    app.registered_commands.sort(key=lambda command: order.index(str(command.name)))
