"""Problems and a model to graded rollouts on disk, in rounds: a problem that is full gets no more.

Each round draws completions of the problems that still need some, grades them, and asks curation
which problems are full. Everything that was drawn stays in the stores, kept or not.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from topr.config import CurateConfig, GenerateConfig, GradeConfig
from topr.curation import Columns, finished, max_candidates
from topr.engines import Engine
from topr.generation import (
    Look,
    check_ids,
    check_none_further,
    draw_shards,
    further_columns,
    shard_count,
)
from topr.models.gguf import gguf_details
from topr.progress import Progress
from topr.records import Problem
from topr.stages.curate import read_columns
from topr.stages.generate import sampling_params
from topr.stages.grade import grade_shards
from topr.store import Manifest, begin, shard_paths, write_manifest
from topr.tasks.prompts import prompt_kinds


def draw_in_rounds(
    problems: Sequence[Problem],
    engine: Engine,
    config: GenerateConfig,
    curations: Sequence[CurateConfig],
    rollouts: Path,
    graded: Path,
    *,
    grader: str,
    grade: GradeConfig,
    stop: tuple[str, ...],
    keep_columns: bool,
    seed: int,
    iteration: int,
    mark: str,
    progress: Progress,
    look: Look | None = None,
) -> Manifest:
    """Draw `config.n` completions a round of each problem that is not full; grade them.

    The samples are those that drawing the most for every problem would have given, as far as they
    go, and the curations keep of them what they would keep of all. Killed and called again, it
    resumes from the last shard. `graded` gets its manifest from `grade_rollouts`.

    Args:
        problems: of the training split.
        engine: on the behaviour model.
        config: the section `generate`; its `n` is the size of a round.
        curations: sections `curate`, each with a rule that knows when a problem is full. A problem
            is drawn for until it is full by all of them.
        rollouts: where the shards go, numbered on from round to round.
        graded: where the graded ones go, under the same names.
        grader: a name in `topr.grading.GRADERS`, or a user's `module:function`.
        grade: the section `grade`.
        stop: the task's stop strings, where the section names none.
        keep_columns: also store the problems' own columns.
        seed: of sampling.
        iteration: written into each row.
        mark: fingerprint of the result.
        progress: told of completions and tokens.
        look: given the first shard, where there are more to come.

    """
    with ExitStack() as held:
        done = held.enter_context(begin(rollouts, "generate", mark))
        if done is not None:
            return done
        held.enter_context(begin(graded, "grade", mark))
        check_ids(problems)
        further = further_columns(problems) if keep_columns else {}
        most = max(max_candidates(curation) or 0 for curation in curations)
        open_ = np.arange(len(problems))
        drawn = shards = 0
        rounds: list[dict[str, int]] = []
        columns: Columns | None = None
        while len(open_) and drawn < most:
            n = min(config.n, most - drawn)
            chosen = [problems[int(i)] for i in open_]
            title = f"generating, round {len(rounds) + 1} ({len(chosen)} problems)"
            with progress.bar(title, n * len(chosen), "completions") as advance:
                draw_shards(
                    chosen,
                    engine,
                    sampling_params(config, stop, seed),
                    n,
                    rollouts,
                    shard_problems=config.shard_problems,
                    iteration=iteration,
                    first_sample=drawn,
                    first_shard=shards,
                    further={name: values.take(open_) for name, values in further.items()},
                    progress=lambda completions, tokens: advance(completions, tokens=tokens),
                    look=None if rounds else look,
                )
            made = shard_count(len(chosen), config.shard_problems)
            sources = shard_paths(rollouts)[shards : shards + made]
            grade_shards(
                sources, grader, grade, graded, progress=progress, tokenizer=engine.tokenizer
            )
            rounds.append({"problems": len(chosen), "completions": n * len(chosen)})
            drawn, shards = drawn + n, shards + made
            columns = read_columns(graded, shards=shards)
            # The first round has every problem, so names are in the order of `problems`.
            full = np.all([finished(columns, curation) for curation in curations], axis=0)
            open_ = np.flatnonzero(~full)
        check_none_further(rollouts, shards)
        manifest = Manifest(
            stage="generate",
            fingerprint=mark,
            rows=sum(each["completions"] for each in rounds),
            files=tuple(path.name for path in shard_paths(rollouts)),
            details={
                "problems": len(problems),
                "prompt": prompt_kinds(problems),
                "rounds": rounds,
                **savings(columns, most),
                **gguf_details(engine.model_name),
            },
        )
        write_manifest(rollouts, manifest)
        return manifest


def savings(columns: Columns | None, most: int) -> dict[str, Any]:
    """Return the tokens that were drawn, and about how many drawing `most` for all would add.

    What was not drawn has no length: a problem's missing completions count as long as the mean of
    those it has. `max_candidates` and `saved_tokens_estimate` are the keys beside `tokens`.
    """
    if columns is None or columns.tokens_N is None:
        return {"tokens": 0, "max_candidates": most, "saved_tokens_estimate": 0}
    drawn_P = np.bincount(columns.problems_N)
    tokens_P = np.bincount(columns.problems_N, weights=columns.tokens_N)
    saved = float(((most - drawn_P) * tokens_P / drawn_P).sum())
    return {
        "tokens": int(tokens_P.sum()),
        "max_candidates": most,
        "saved_tokens_estimate": round(saved),
    }


def spent(details: Mapping[str, Any]) -> str:
    """Say what drawing in rounds cost, and saved, from the manifest's details."""
    drawn, saved = details["tokens"], details["saved_tokens_estimate"]
    rounds = ", ".join(str(each["problems"]) for each in details["rounds"])
    return (
        f"drew {drawn} tokens in {len(details['rounds'])} rounds (of {rounds} problems); drawing "
        f"{details['max_candidates']} for all would have taken about {saved} more, "
        f"{saved / max(1, drawn + saved):.0%} (an estimate from each problem's mean length)"
    )
