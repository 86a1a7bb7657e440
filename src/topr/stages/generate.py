"""Problems and a model to rollouts on disk: the stage `generate`, in one round or in several.

With a quota there are rounds: each samples completions of the problems that still need some, grades
them, and asks curation which problems are full. All completions stay in the stores, kept or not.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from topr.config import CurateConfig, GradeConfig, ModelConfig, Recipe
from topr.curation import finished, max_candidates
from topr.engines import Engine
from topr.models.gguf import gguf_details
from topr.progress import Progress
from topr.stages.common import grading_version, open_stage
from topr.stages.curate import read_columns
from topr.stages.draw import Look, draw, refuse_other_shards
from topr.stages.draw_plan import DrawPlan, plan_draw
from topr.stages.grade import grade_shards, open_grades
from topr.store import Manifest, read_table, shard_paths
from topr.tasks import Split, Task
from topr.tasks.prompts import prompt_kinds
from topr.tokenization.digest import tokenizer_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def plan_rollouts(
    recipe: Recipe,
    task: Task,
    model: ModelConfig,
    *,
    iteration: int,
    seed: int,
    split: Split = Split.TRAIN,
) -> DrawPlan:
    """Return what a recipe samples from a model: all of it, or the first round."""
    settings = (recipe.generate, model.at(""))
    problems = task.problems(split)
    return plan_draw(problems, task, recipe.generate, seed, iteration=iteration, settings=settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """When a problem has enough completions, and how they are graded to tell."""

    curations: Sequence[CurateConfig]
    """Each with a rule that knows when a problem is full; it needs to be full by all of them."""
    grader: str
    """A name in `topr.grading.GRADERS`, or a user's `module:function`."""
    grade: GradeConfig
    graded: Path
    """Where graded shards go, under the names of the others. `grade_rollouts` completes it."""

    def fixed(self) -> list[Any]:
        """Return what the completions depend on, for a hash of it."""
        curations = [curation.fixed() for curation in self.curations]
        return [curations, self.grader, self.grade.fixed(), grading_version(self.grader)]

    @property
    def most(self) -> int:
        """Completions of a problem, at most."""
        return max(max_candidates(curation) or 0 for curation in self.curations)

    def needing(self, shards: int) -> list[int]:
        """Return the indices of problems that are not full by the first shards."""
        columns = read_columns(self.graded, shards=shards)
        # The first round has every problem, so names are in the order of the plan's problems.
        full = np.all([finished(columns, curation) for curation in self.curations], axis=0)
        return [int(index) for index in np.flatnonzero(~full)]

    def savings(self) -> dict[str, Any]:
        """Return about how many tokens more `most` completions of every problem would be.

        What was not sampled has no length: missing completions of a problem count as long as the
        mean of those that it has.
        """
        columns, saved = read_columns(self.graded), 0.0
        if columns.tokens_N is not None:
            drawn_P = np.bincount(columns.problems_N)
            tokens_P = np.bincount(columns.problems_N, weights=columns.tokens_N)
            saved = float(((self.most - drawn_P) * tokens_P / drawn_P).sum())
        return {"max_candidates": self.most, "saved_tokens_estimate": round(saved)}


def generate_rollouts(
    plan: DrawPlan,
    engine: Engine,
    directory: Path,
    *,
    progress: Progress,
    quota: Quota | None = None,
    look: "Callable[[PreTrainedTokenizerBase], Look] | None" = None,
) -> Manifest:
    """Sample what a plan says; with a quota, in rounds of `plan.n` until every problem is full.

    The samples of rounds are those that sampling the most for every problem would have given, as
    far as they go, and curation keeps of them what it would keep of all. Killed and called again,
    it resumes from the last shard.

    Args:
        plan: of the problems of the training split.
        engine: on the behavior model.
        directory: where the shards go, numbered on from round to round.
        progress: receives completions and tokens.
        quota: when a problem is full.
        look: makes, of the engine's tokenizer, what receives the first shard, where there are
            more to come: `partial(topr.grading.survey.first_look, grader, grade)`.

    """
    with ExitStack() as held:
        writer = (engine.revision or engine.model_name, tokenizer_digest(engine.tokenizer))
        parts = (plan, *writer, quota)
        stage = held.enter_context(open_stage(directory, "generate", *parts))
        if stage.done is not None:
            return stage.done
        if quota is not None:
            held.enter_context(
                open_grades(quota.graded, stage.fingerprint, quota.grader, quota.grade)
            )
            progress.say(
                f"[iteration {plan.iteration}] draw up to {quota.most} completions per problem, in "
                "rounds"
            )
        looks = look(engine.tokenizer) if look else None
        rounds = _rounds(plan, engine, directory, quota, progress, looks)
        ids = read_table(directory, ["completion_ids"]).column("completion_ids")
        details: dict[str, Any] = {
            "problems": len(plan.problems),
            "prompt": prompt_kinds(plan.problems),
            "tokens": pc.sum(pc.list_value_length(ids)).as_py() or 0,
            **gguf_details(engine.model_name),
        }
        if quota is not None:
            details |= {"rounds": rounds, **quota.savings()}
        return stage.finish(rows=len(ids), details=details)


def _rounds(
    plan: DrawPlan,
    engine: Engine,
    directory: Path,
    quota: Quota | None,
    progress: Progress,
    look: Look | None,
) -> list[dict[str, int]]:
    """Carry out a plan in rounds. Without a quota there is one, of all problems."""
    rounds: list[dict[str, int]] = []
    needing, drawn, shards = list(range(len(plan.problems))), 0, 0
    most = plan.n if quota is None else quota.most
    while needing and drawn < most:
        now = plan if quota is None else plan.round(
            needing, n=min(plan.n, most - drawn), first_sample=drawn, first_shard=shards
        )  # fmt: skip
        title = "generating"
        if quota is not None:
            title = f"generating, round {len(rounds) + 1} ({len(needing)} problems)"
        with progress.bar(title, now.completions, "completions") as advance:
            draw(now, engine, directory, advance=advance, look=None if rounds else look)
        rounds.append({"problems": len(needing), "completions": now.completions})
        drawn += now.n
        if quota is not None:
            made = shard_paths(directory)[shards : now.end]
            grade_shards(
                made, quota.grader, quota.grade, quota.graded, progress=progress,
                tokenizer=engine.tokenizer,
            )  # fmt: skip
            needing = quota.needing(now.end)
        shards = now.end
    refuse_other_shards(directory, shards)
    return rounds


def spent(details: Mapping[str, Any]) -> str:
    """Say what sampling in rounds cost, and saved, from the manifest's details."""
    drawn, saved = details["tokens"], details["saved_tokens_estimate"]
    rounds = ", ".join(str(each["problems"]) for each in details["rounds"])
    return (
        f"drew {drawn} tokens in {len(details['rounds'])} rounds (of {rounds} problems); drawing "
        f"{details['max_candidates']} for all would have taken about {saved} more, "
        f"{saved / max(1, drawn + saved):.0%} (an estimate from each problem's mean length)"
    )
