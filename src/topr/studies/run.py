"""A study from its first cell to its results: rates swept, arms and seeds computed, in processes.

Every cell is there or not, and is computed once: a study that was stopped anywhere resumes. Not
here: what a cell is (`topr.studies.cells`) and what follows from cells (`topr.studies.results`).
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import yaml

from topr.config.study import BASE, Study
from topr.errors import ConfigError, DataError, ToprError
from topr.progress import Progress
from topr.runs.directory import lock_run_directory
from topr.runs.environment import environment, prepare_process
from topr.store import write_text_atomic
from topr.studies.adding import keep_arms
from topr.studies.cells import (
    CELL_FILE,
    STANDARD_ERROR,
    Done,
    Job,
    Kind,
    drawing_for,
    is_done,
    read_cell,
    work,
)
from topr.studies.figures import check_matplotlib, draw_figures
from topr.studies.page import html, markdown
from topr.studies.results import RESULTS_FILE, Results, Swept, read_results, write_results

Score = tuple[float, float]
"""Accuracy and its standard error."""

WIDENED = 3
"""Rates tried beyond the study's own, at most, for an arm whose best lies at an end."""


def run_study(study: Study, directory: Path, *, jobs: int, progress: Progress) -> Results:
    """Compute the cells that are missing, and write results, page, report and figures.

    Args:
        study: what to compute.
        directory: of the study; made where it is not there.
        jobs: cells computed side by side, each in a process with its share of the cores; 1 for one
            after another in this process, as a single GPU wants it.
        progress: receives finished cells.

    Raises:
        RunDirectoryError: the directory holds another study.
        ConfigError: figures cannot be sampled here, or an arm's recipe does not fit.
        ToprError: what a cell raises.

    """
    if (directory / RESULTS_FILE).is_file():
        asked, study = study, keep_arms(study, read_results(directory).study)
        if kept := [name for name in study.arms if name not in asked.arms]:
            progress.say(f"arms that were computed in {directory} before stay: {', '.join(kept)}")
    check_study(study)
    with lock_run_directory(study, directory):
        if done := sum(1 for _ in directory.rglob(CELL_FILE)):
            progress.say(f"continues from {directory}: {done} cells are done")
        with _pool(jobs) as pool:
            grid = _Grid(study, directory, pool, progress)
            sweep = grid.sweep()
            cells = grid.cells(sweep)
        results = Results(
            study=study,
            cells=tuple(done.cell for done in cells),
            sweep=sweep,
            environment=environment(),
            seconds=sum(done.seconds for done in cells) + grid.sweep_seconds,
            commits=tuple(sorted({done.commit for done in cells if done.commit})),
            first_claims=_first_claims(directory),
        )
        write_study(results, directory)
    return results


def check_study(study: Study) -> None:
    """Refuse now what the last arm would be refused for when all others are done.

    Raises:
        ConfigError: figures cannot be drawn here, or an arm's recipe does not fit.

    """
    from topr.runs.recipe_checks import check_recipe

    check_matplotlib()
    for arm in study.arms:
        try:
            check_recipe(study.cell(arm, study.seeds[0], None, "test"))
        except ConfigError as error:
            raise ConfigError(f"study {study.name}, arms.{arm}: {error}") from error


def write_study(results: Results, directory: Path) -> None:
    """Write what is made of results: `results.json`, `results.md`, figures, `report.html`."""
    write_results(results, directory)
    figures = draw_figures(results, directory)
    write_text_atomic(directory / "results.md", markdown(results, [path.name for path in figures]))
    write_text_atomic(directory / "report.html", html(results, figures))


class _Grid:
    """The jobs of a study, and the processes that do them."""

    def __init__(
        self, study: Study, directory: Path, pool: ProcessPoolExecutor | None, progress: Progress
    ) -> None:
        self.study = study
        self.directory = directory
        self.pool = pool
        self.progress = progress
        self.sweep_seconds = 0.0

    def sweep(self) -> dict[str, Swept]:
        """Choose the rate of each arm without one, on validation problems.

        Every arm gets the study's rates. An arm whose best is the lowest or the highest gets the
        next one on that side, until its best lies inside or `WIDENED` more have been tried. See
        `chosen` for the rule.
        """
        arms = [name for name, arm in self.study.arms.items() if arm.rate is None and arm.train]
        found = self._tried({arm: sorted(self.study.rates) for arm in arms})
        for _ in range(WIDENED):
            wider = {
                arm: beyond({r: s for r, (s, _) in each.items()}) for arm, each in found.items()
            }
            for arm, each in self._tried({a: [r] for a, r in wider.items() if r}).items():
                found[arm] |= each
        return {
            arm: Swept(
                chosen=chosen(each),
                pass_at_1={f"{rate:g}": each[rate][0] for rate in sorted(each)},
                standard_error={f"{rate:g}": each[rate][1] for rate in sorted(each)},
            )
            for arm, each in found.items()
        }

    def _tried(self, rates: Mapping[str, Sequence[float]]) -> dict[str, dict[float, Score]]:
        """Return the study's metric on validation problems, and its error, by arm and rate."""
        jobs = {
            (arm, rate): self._job(arm, self.study.tuning_seed, rate, "validation", without=True)
            for arm, each in rates.items()
            for rate in each
        }
        self._do("sweep of learning rates", list(jobs.values()))
        found: dict[str, dict[float, Score]] = {}
        for (arm, rate), job in jobs.items():
            done = read_cell(job)
            metrics = done.cell.final.metrics
            if self.study.metric not in metrics:
                raise DataError(
                    f"{job.title} has no {self.study.metric} on validation problems, by which "
                    f"rates are chosen; it has {', '.join(sorted(metrics))}"
                )
            score = (metrics[self.study.metric], metrics[self.study.metric + STANDARD_ERROR])
            found.setdefault(arm, {})[rate] = score
            self.sweep_seconds += done.seconds
        return found

    def cells(self, sweep: dict[str, Swept]) -> list[Done]:
        """Compute every arm with every seed, and the starting models."""
        jobs = []
        for seed in self.study.seeds:
            jobs.append(self._job(BASE, seed, None, "test"))
            for name, arm in self.study.arms.items():
                source = arm.rate if isinstance(arm.rate, str) else name
                rate = arm.rate if isinstance(arm.rate, float) else None
                if source in sweep:
                    rate = sweep[source].chosen
                jobs.append(self._job(name, seed, rate, "test"))
        self._do("cells", jobs)
        return [read_cell(job) for job in jobs]

    def _job(
        self, arm: str, seed: int, rate: float | None, split: str, *, without: bool = False
    ) -> Job:
        """Return a cell's job; `without` snapshots and later iterations."""
        from topr.studies.sharing import draws_fingerprint

        recipe = self.study.cell(None if arm == BASE else arm, seed, rate, split)
        if without:
            train = recipe.train.model_copy(update={"snapshots": ()})
            recipe = recipe.model_copy(update={"train": train, "iterations": 1})
            if recipe.verifier is not None:
                once = {**recipe.verifier, "iterations": 1}
                recipe = recipe.model_copy(update={"verifier": once})
        folder = self.directory / (f"seed-{seed}" if split == "test" else "sweep")
        name = arm if rate is None else f"{arm}-{rate:g}"
        return Job(
            arm=arm,
            seed=seed,
            rate=rate,
            recipe=recipe,
            kind=Kind.TRAIN if arm != BASE and self.study.arms[arm].train else Kind.EVALUATE,
            directory=folder / name,
            draws=folder / f"draws-{draws_fingerprint(recipe)[:8]}",
        )

    def _do(self, title: str, jobs: Sequence[Job]) -> None:
        """Compute the jobs that are not done: first what they share, then the cells themselves."""
        missing = [job for job in jobs if not is_done(job)]
        drawing = {job.draws: drawing_for(job) for job in missing if job.kind is Kind.TRAIN}
        shared = [job for job in drawing.values() if not is_done(job)]
        if not missing:
            return
        with self.progress.bar(title, len(shared) + len(missing), "cells") as advance:
            for batch in (shared, missing):
                for job in self._finished(batch):
                    advance(1, note=job.title)

    def _finished(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield jobs as they end."""
        if self.pool is None:
            for job in jobs:
                with _named(job):
                    work(job)
                yield job
            return
        running: dict[Future[None], Job] = {self.pool.submit(work, job): job for job in jobs}
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                job = running.pop(future)
                with _named(job):
                    future.result()
                yield job


def _first_claims(directory: Path) -> tuple[str, ...]:
    """Return what the study claimed when its directory was made."""
    there = yaml.safe_load((directory / "recipe.yaml").read_text(encoding="utf-8"))
    return tuple(claim["says"] for claim in there["claims"])


def chosen(found: Mapping[float, Score]) -> float:
    """Return the lowest rate whose accuracy is within one standard error of the best.

    The best of a few noisy numbers is often a rate that was lucky once, and a high one is the
    likelier to fall apart with another seed.
    """
    best, error = max(found.values())
    return min(rate for rate, (score, _) in found.items() if score >= best - error)


def beyond(scores: Mapping[float, float]) -> float | None:
    """Return the rate to try next where the best is the lowest or the highest; else None.

    As far from the best as its neighbour is, to two digits.
    """
    rates = sorted(scores)
    best = max(rates, key=lambda rate: scores[rate])
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    neighbour = rates[1] if best == rates[0] else rates[-2]
    further = float(f"{best * best / neighbour:.1e}")
    return None if further in scores else further


@contextmanager
def _named(job: Job) -> Iterator[None]:
    """Let an error say which cell it comes from."""
    try:
        yield
    except ToprError as error:
        raise type(error)(f"cell {job.title}, in {job.directory}: {error}") from error


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that share the cores; None for one job at a time, which this process does."""
    if jobs == 1:
        yield None
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=get_context("spawn"),
        initializer=_prepare,
        initargs=(threads, os.getpid()),
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(threads: int, parent: int) -> None:
    """Set up a process, before torch is imported there; it ends when its parent does."""
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    prepare_process()
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a study that is started again needs its cells."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
