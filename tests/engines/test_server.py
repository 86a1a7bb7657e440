"""The server engine against real server processes, whole and faulty."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from completions_server import KINDS
from servers import (
    end,
    free_port,
    gone,
    launch,
    notes,
    open_server,
    own,
    own_processes,
    serving,
    soon,
)
from tiny import EOS, save_tiny, tiny_tokenizer
from topr.config import GenerateConfig, ModelConfig
from topr.engines import Engine, Request, check_engine, open_engine
from topr.engines.rng import request_seed
from topr.errors import ConfigError, EngineError
from topr.records import FinishReason, Rollout, SamplingParams
from topr.store import Journal, journal_path, read_table, rollouts_to_table

ORDER = [("problem_id", "ascending"), ("sample", "ascending")]
TOKENIZER = tiny_tokenizer()
SAMPLING = SamplingParams(max_tokens=30, seed=3)
PROMPTS = [f"What is {i} ?" for i in range(6)]
REQUESTS = [
    Request(problem_id=p, prompt=p, prompt_ids=tuple(TOKENIZER(p)["input_ids"]), n=8, gold="1")
    for p in PROMPTS
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the logs of servers that topr starts go."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Rollout]:
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(log) as url, closing(open_server(model, url=url)) as engine:
        rollouts = draw(engine)
    assert len(notes(log)) == len(rollouts) == 48
    return rollouts


def draw(engine: Engine, sampling: SamplingParams = SAMPLING, **options: Any) -> dict[Any, Rollout]:
    rollouts = list(engine.generate(REQUESTS, sampling, **options))
    drawn = {(rollout.problem_id, rollout.sample): rollout for rollout in rollouts}
    assert len(drawn) == len(rollouts)
    return drawn


def test_rollouts_hold_what_the_server_drew(undisturbed: dict[Any, Rollout], model: Path) -> None:
    assert set(undisturbed) == {(p, i) for p in PROMPTS for i in range(8)}
    assert len({rollout.completion_ids for rollout in undisturbed.values()}) > 40
    for rollout in undisturbed.values():
        assert rollout.logprobs is not None
        assert len(rollout.logprobs) == len(rollout.completion_ids)
        stopped = rollout.completion_ids[-1] == EOS
        assert stopped or len(rollout.completion_ids) == 30
        assert rollout.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
        text = TOKENIZER.decode(list(rollout.completion_ids), skip_special_tokens=True)
        assert (rollout.completion, rollout.engine, rollout.gold) == (text, "server", "1")
        assert rollout.model == str(model)
        assert (rollout.revision or "").startswith("sha256:")
    assert {rollout.finish_reason for rollout in undisturbed.values()} == set(FinishReason)


def test_each_fault_is_overcome(
    undisturbed: dict[Any, Rollout], model: Path, tmp_path: Path
) -> None:
    with serving(tmp_path / "log", *KINDS) as url, closing(open_server(model, url=url)) as engine:
        assert draw(engine) == undisturbed
    assert len(notes(tmp_path / "log")) == 48  # what was answered well was not asked again


def test_a_server_killed_and_started_again_loses_and_doubles_nothing(
    undisturbed: dict[Any, Rollout], model: Path, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "log"
    first = launch(port, log, "paced")
    with closing(open_server(model, url=f"http://127.0.0.1:{port}/v1")) as engine:
        seen, second = [], None
        for rollout in engine.generate(REQUESTS, SAMPLING):
            seen.append(rollout)
            if len(seen) == 10:
                end(first)
                time.sleep(0.3)
                second = launch(port, log)
    assert second is not None
    end(second)
    assert len(seen) == 48
    assert {(r.problem_id, r.sample): r for r in seen} == undisturbed


def test_patience_ends(model: Path, tmp_path: Path) -> None:
    with (
        serving(tmp_path / "log", "paced") as url,
        closing(open_server(model, url=url, patience=1.0)) as engine,
    ):
        drawn = engine.generate(REQUESTS, SAMPLING)
        next(drawn)
        (pid,) = own_processes(tmp_path / "log")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"answered no request for \d s, and patience is 1 s"):
            list(drawn)


def test_what_the_server_refuses_is_not_asked_again(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", "strict") as url:
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"status 404.*no model tiny"):
            open_server(model, url=url)
        assert time.monotonic() - began < 10
        with pytest.raises(EngineError, match=f"no model {model}/x"):
            open_server(model, url=url, model="{model}/x")


def test_stop_strings_stay_in_the_ids(undisturbed: dict[Any, Rollout], model: Path,
                                      tmp_path: Path) -> None:  # fmt: skip
    """Also where the server leaves them out: it is not told of them then."""
    stop = "~"
    sampling = dataclasses.replace(SAMPLING, stop=(stop, "never"))
    for traits in ((), ("trimmed",)):
        with serving(tmp_path / "log", *traits) as url, closing(open_server(model, url=url)) as e:
            stopped = draw(e, sampling)
        hits = 0
        for key, rollout in stopped.items():
            free = undisturbed[key]
            size = len(rollout.completion_ids)
            assert rollout.completion_ids == free.completion_ids[:size]
            assert rollout.logprobs == (free.logprobs or ())[:size]
            if stop in free.completion:
                hits += 1
                assert rollout.completion == free.completion.split(stop)[0] + stop
                assert rollout.finish_reason is FinishReason.STOP
            else:
                assert size == len(free.completion_ids)
        assert hits > 3


def test_greedy_log_probabilities_are_zero(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log") as url, closing(open_server(model, url=url)) as engine:
        drawn = draw(engine, SamplingParams(temperature=0.0, max_tokens=5))
    assert all(set(rollout.logprobs or ()) == {0.0} for rollout in drawn.values())
    assert len({rollout.completion_ids for rollout in drawn.values()}) == len(PROMPTS)


def test_text_alone_is_tokenised_once_and_said(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path / "log", "textual") as url, closing(open_server(model, url=url)) as e:
        assert not e.records_logprobs
        drawn = draw(e, dataclasses.replace(SAMPLING, stop=("~",)))
        with pytest.raises(EngineError, match="top_k=5 is none of them"):
            draw(e, dataclasses.replace(SAMPLING, top_k=5))
    warnings = [r.message for r in caplog.records if "recompute" in r.message]
    assert len(warnings) == 1
    for rollout in drawn.values():
        assert rollout.logprobs is None
        text_ids = tuple(TOKENIZER(rollout.completion)["input_ids"])
        if rollout.finish_reason is FinishReason.LENGTH or "~" in rollout.completion:
            assert rollout.completion_ids == text_ids
        else:
            assert rollout.completion_ids == (*text_ids, EOS)
    assert any("~" in rollout.completion for rollout in drawn.values())


def test_tokens_that_end_within_a_character_are_there(
    undisturbed: dict[Any, Rollout], model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """llama.cpp lists them only when it is asked in its own words; it has no number for them."""
    stops = dataclasses.replace(SAMPLING, stop=("~",))
    with serving(tmp_path / "log", "listing") as url, closing(open_server(model, url=url)) as e:
        assert not e.records_logprobs
        drawn, stopped = draw(e), draw(e, stops)
    full = 0
    for key, rollout in drawn.items():
        free = undisturbed[key]
        assert rollout.completion_ids == free.completion_ids
        if rollout.logprobs is not None:
            full += 1
            assert rollout.logprobs == pytest.approx(free.logprobs)
        head, found, _ = free.completion.partition("~")
        assert stopped[key].completion == head + found
    assert 0 < full < len(drawn)
    assert caplog.text.count("not give a log-probability of every token id") == 1


@pytest.mark.parametrize(
    ("traits", "sampling", "said"),
    [
        ((), {"temperature": 0.7, "top_k": 5, "top_p": 0.9}, None),
        (("plain",), {}, None),
        (("tempered",), {"temperature": 0.7}, None),
        (("plain",), {"temperature": 0.7}, "leave out temperature=0.7, as vLLM's do without"),
        (("tempered",), {"temperature": 0.7, "top_k": 5}, "leave out top_k=5: they are"),
        (("plain",), {"top_k": 5, "top_p": 0.9}, "leave out top_k=5 and top_p=0.9, as"),
        (("narrow",), {"top_k": 5}, None),
        (("narrow",), {"top_p": 0.9}, "leave out top_p=0.9, as"),
    ],
)
def test_logprobs_of_another_distribution_are_not_used(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, traits: tuple[str, ...],
    sampling: dict[str, Any], said: str | None,
) -> None:  # fmt: skip
    with serving(tmp_path / "log", *traits) as url:
        server = {"url": url, "concurrency": 8}
        config = GenerateConfig(engine="server", server=server, **sampling)  # type: ignore[arg-type]
        with closing(open_engine(ModelConfig(path=str(model)), config)) as engine:
            drawn = draw(engine, dataclasses.replace(SAMPLING, **sampling))
            greedy = draw(engine, SamplingParams(temperature=0.0, max_tokens=3))
            records = engine.records_logprobs
    assert records == (said is None)
    assert {rollout.logprobs is None for rollout in drawn.values()} == {said is not None}
    assert all(set(rollout.logprobs or ()) == {0.0} for rollout in greedy.values())
    warnings = [record.message for record in caplog.records if "recompute" in record.message]
    assert len(warnings) == (said is not None)
    if said is not None:
        assert said in warnings[0]


def test_other_sampling_than_the_recipes_is_warned_of(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serving(tmp_path / "log", "plain") as url,
        closing(open_server(model, url=url)) as engine,
    ):
        assert engine.records_logprobs
        assert "recompute" not in caplog.text
        drawn = draw(engine, dataclasses.replace(SAMPLING, temperature=0.7))
    assert {rollout.logprobs for rollout in drawn.values()} == {None}
    assert caplog.text.count("leave out temperature=0.7") == 1


def test_a_server_that_does_not_sample_is_suspected(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for traits, said in (((), False), (("set",), True)):
        with serving(tmp_path / "log", *traits) as url:
            open_server(model, url=url)
        assert ("wrote the same text with two seeds" in caplog.text) == said


def test_an_end_that_is_left_out_is_added_without_log_probabilities(
    undisturbed: dict[Any, Rollout], model: Path, tmp_path: Path
) -> None:
    with serving(tmp_path / "log", "endless") as url, closing(open_server(model, url=url)) as e:
        assert not e.records_logprobs
        drawn = draw(e)
    for key, rollout in drawn.items():
        assert rollout.completion_ids == undisturbed[key].completion_ids
        assert (rollout.logprobs is None) == (rollout.finish_reason is FinishReason.STOP)


def test_the_key_is_sent_and_shown_nowhere(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_KEY", "geheim")
    caplog.set_level(logging.DEBUG)
    with (
        serving(tmp_path / "log") as url,
        closing(open_server(model, url=url, api_key_env="SOME_KEY")) as engine,
    ):
        rollouts = draw(engine)
        assert "geheim" not in repr(vars(engine))
    assert {note["auth"] for note in notes(tmp_path / "log")} == {"Bearer geheim"}
    assert "geheim" not in caplog.text
    assert "geheim" not in repr(rollouts)
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ConfigError, match="api_key_env=SOME_KEY, and there is no such"):
        open_server(model, url=url, api_key_env="SOME_KEY")


def test_an_unfit_prompt_is_refused_before_anything_is_drawn(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log") as url, closing(open_server(model, url=url)) as engine:
        strange = dataclasses.replace(REQUESTS[0], prompt_ids=(9, 5000))
        with pytest.raises(EngineError, match="token id 5000, but the model knows ids 0 to 276"):
            engine.generate([*REQUESTS, strange], SAMPLING)
    assert notes(tmp_path / "log") == []


def test_what_a_run_cannot_use_is_refused_before_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str, **server: Any) -> None:
        config = GenerateConfig(engine="server", server=server)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=match):
            check_engine(ModelConfig(path=str(model)), config)

    refused("a run draws from each model", url="http://127.0.0.1:1")
    refused("which is no program here", command=["no-such-program", "{port}"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("vllm is not installed", concurrency=3)


# A server of the engine's own


def test_an_own_server_is_ended_with_all_that_it_started(
    undisturbed: dict[Any, Rollout], model: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with closing(open_server(model, **own(log, "parent"))) as engine:
        assert draw(engine) == undisturbed
        processes = own_processes(log)
        assert len(processes) == 4  # the two that watch it, it, its child
        noted: Path = engine._served.log
    assert all(map(gone, processes))
    assert not noted.exists()


def test_an_own_server_that_dies_is_not_waited_for(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = [sys.executable, "-c", "import sys; sys.exit('out of memory {port}')"]
    with pytest.raises(EngineError, match=r"ended with status 1(?s:.*)out of memory \d+"):
        open_server(model, command=words)
    with closing(open_server(model, **own(log, "paced", "parent"))) as engine:
        processes = own_processes(log)
        drawn = engine.generate(REQUESTS, SAMPLING)
        next(drawn)
        os.kill(processes[2], signal.SIGKILL)
        with pytest.raises(EngineError, match="the server that topr started has ended") as caught:
            list(drawn)
    assert all(map(gone, processes))
    kept = list(tmp_path.glob("topr-server-*.log"))
    assert len(kept) == 2
    assert any(str(log) in str(caught.value) for log in kept)


def test_an_own_server_that_is_no_use_is_ended(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(EngineError, match="no model"):
        open_server(model, **own(log, "strict"))
    assert soon(lambda: not own_processes(log))


def test_a_server_ends_when_what_watches_it_is_killed(model: Path, tmp_path: Path) -> None:
    """As Ray kills the children of a worker that exits."""
    log = tmp_path / "log"
    with closing(open_server(model, **own(log, "parent"))) as engine:
        processes = own_processes(log)
        engine._served._process.kill()
        assert soon(lambda: all(map(gone, processes)))


DRIVER = """
import sys
from pathlib import Path
from servers import open_server
from topr.records import Problem, SamplingParams
from topr.stages.draw import draw
from topr.stages.draw_plan import DrawPlan
model, output, *command = sys.argv[1:]
engine = open_server(Path(model), command=command)
problems = [Problem(id=f"What is {i} ?", prompt=f"What is {i} ?", answer="1") for i in range(6)]
sampling = SamplingParams(max_tokens=30, seed=3)
plan = DrawPlan(problems=problems, sampling=sampling, n=8, shard_problems=4)
drawn = draw(plan, engine, Path(output))
engine.close()
print(drawn)
"""


@pytest.mark.slow
def test_a_killed_driver_takes_its_server_along_and_goes_on(
    undisturbed: dict[Any, Rollout], model: Path, tmp_path: Path
) -> None:
    log, output = tmp_path / "log", tmp_path / "rollouts"
    words = [str(model), str(output), *own(log, "paced", "parent")["command"]]
    paths = os.pathsep.join(sys.path)
    added = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    environment = {**os.environ, **added}
    command = [sys.executable, "-c", DRIVER, *words]
    driver = subprocess.Popen(command, env=environment)
    journal = journal_path(output, 0)
    assert soon(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 12, 60)
    processes = own_processes(log)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert soon(lambda: all(map(gone, processes)))
    with Journal(journal) as there:
        noted = there.rollouts
    with journal.open("ab") as file:
        file.write(b'{"problem_id": "What')  # a line that the kill broke off
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(again.stdout) == 48 - len(noted)
    wanted = rollouts_to_table(
        dataclasses.replace(r, question=key[0]) for key, r in undisturbed.items()
    )
    assert read_table(output).sort_by(ORDER).equals(wanted.sort_by(ORDER))
    asked = Counter(note["seed"] for note in notes(log) if "seed" in note)
    assert {asked[request_seed(3, r.problem_id, r.sample)] for r in noted} == {1}
    assert len(asked) == 48
    assert not list(output.glob(".*"))
