"""Problems and a model to rollouts on disk."""

from collections.abc import Sequence
from pathlib import Path

from topr.config import GenerateConfig
from topr.engines import Engine
from topr.generation import Look, draw
from topr.models.gguf import gguf_details
from topr.progress import Progress
from topr.records import Problem, SamplingParams
from topr.store import Manifest, begin, read_table, shard_paths, write_manifest
from topr.tasks.prompts import prompt_kinds


def sampling_params(config: GenerateConfig, stop: tuple[str, ...], seed: int) -> SamplingParams:
    """Return how the section says that completions are drawn.

    Args:
        config: the section `generate`.
        stop: the task's stop strings, where the section names none.
        seed: of sampling.

    """
    return SamplingParams(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_tokens=config.max_tokens,
        stop=config.stop if config.stop is not None else stop,
        seed=seed,
    )


def generate_rollouts(
    problems: Sequence[Problem],
    engine: Engine,
    config: GenerateConfig,
    directory: Path,
    *,
    stop: tuple[str, ...],
    keep_columns: bool,
    seed: int,
    iteration: int,
    mark: str,
    progress: Progress,
    look: Look | None = None,
) -> Manifest:
    """Draw `config.n` completions of each problem; see `topr.generation.draw`.

    Args:
        problems: of the training split.
        engine: on the behaviour model.
        config: the section `generate`.
        directory: where the shards go.
        stop: the task's stop strings, where the section names none.
        keep_columns: also store the problems' own columns, for a user's reward function.
        seed: of sampling.
        iteration: written into each row.
        mark: fingerprint of the result.
        progress: told of completions and tokens.
        look: given the first shard, where there are more to come.

    """
    with begin(directory, "generate", mark) as done:
        if done is not None:
            return done
        sampling = sampling_params(config, stop, seed)
        with progress.bar("generating", len(problems) * config.n, "completions") as advance:
            draw(
                problems,
                engine,
                sampling,
                config.n,
                directory,
                shard_problems=config.shard_problems,
                iteration=iteration,
                keep_columns=keep_columns,
                progress=lambda completions, tokens: advance(completions, tokens=tokens),
                look=look,
            )
        ids = read_table(directory, ["completion_ids"]).column("completion_ids")
        manifest = Manifest(
            stage="generate",
            fingerprint=mark,
            rows=len(ids),
            files=tuple(path.name for path in shard_paths(directory)),
            details={
                "problems": len(problems),
                "prompt": prompt_kinds(problems),
                "tokens": sum(map(len, ids)),
                **gguf_details(engine.model_name),
            },
        )
        write_manifest(directory, manifest)
        return manifest
