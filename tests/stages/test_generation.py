"""Drawing into shards: what is asked of the engine, what is written, what is not drawn twice."""

import dataclasses

import pytest

from tiny import tiny_tokenizer
from tiny_rollouts import tiny_rollout
from topr.errors import DataError, EngineError, RunDirectoryError
from topr.records import Problem, SamplingParams
from topr.stages.draw import draw
from topr.stages.draw_plan import DrawPlan, extra_columns
from topr.store import Journal, journal_path, read_table, shard_paths, table_to_rollouts

SAMPLING = SamplingParams(temperature=0.7, stop=("\n",), seed=3)
PROBLEMS = [Problem(id=f"p{i}", prompt=f"What is {i} ?", answer=str(i)) for i in range(7)]


class Backwards:
    """Finishes everything in the opposite order, and remembers what it was asked."""

    name = "backwards"
    journal = spans_shards = False

    def __init__(self):
        self.requests = []

    def generate(self, requests, sampling, *, iteration=0):
        self.requests += requests
        for request in reversed(requests):
            for sample in reversed(range(request.n)):
                yield tiny_rollout(
                    problem_id=request.problem_id,
                    sample=sample,
                    prompt=request.prompt,
                    prompt_ids=request.prompt_ids,
                    completion=f"{request.problem_id} {sample}",
                    completion_ids=(7, 8, 2),
                    logprobs=(-1.0, -0.5, -0.25),
                    sampling=sampling,
                    engine=self.name,
                    iteration=iteration,
                    gold=request.gold,
                )


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def draw_into(tokenizer):
    def call(directory, engine=None, *, look=None, steps=None, **changed):
        given = {"problems": PROBLEMS, "sampling": SAMPLING, "n": 2, "shard_problems": 3}
        engine = engine or Backwards()
        engine.tokenizer = tokenizer

        def advance(done, *, tokens=0):
            if steps is not None:
                steps.append((done, tokens))

        plan = DrawPlan(**{**given, "iteration": 2, **changed})
        return draw(plan, engine, directory, advance=advance, look=look)

    return call


def test_shards_hold_the_problems_in_order_whatever_the_engine_finished_first(tmp_path, draw_into):
    assert draw_into(tmp_path) == 14
    assert [path.name for path in shard_paths(tmp_path)] == [
        f"part-0000{index}.parquet" for index in range(3)
    ]
    rollouts = list(table_to_rollouts(read_table(tmp_path)))
    assert [(r.problem_id, r.sample) for r in rollouts] == [
        (f"p{i}", sample) for i in range(7) for sample in range(2)
    ]
    assert read_table(shard_paths(tmp_path)[2]).num_rows == 2
    assert {(r.sampling, r.iteration) for r in rollouts} == {(SAMPLING, 2)}
    assert [r.gold for r in rollouts[::2]] == [problem.answer for problem in PROBLEMS]


def test_the_engine_is_given_the_rendered_prompt(tmp_path, draw_into, tokenizer):
    engine = Backwards()
    draw_into(tmp_path, engine)
    assert [request.prompt for request in engine.requests] == [p.prompt for p in PROBLEMS]
    assert list(engine.requests[0].prompt_ids) == tokenizer(PROBLEMS[0].prompt)["input_ids"]
    assert {(request.n, request.first_sample) for request in engine.requests} == {(2, 0)}


def test_shards_that_are_there_are_not_drawn_again(tmp_path, draw_into):
    draw_into(tmp_path)
    before = {path.name: path.read_bytes() for path in shard_paths(tmp_path)}
    (tmp_path / "part-00001.parquet").unlink()
    engine, steps = Backwards(), []
    drawn = draw_into(tmp_path, engine, steps=steps)
    assert drawn == 6
    assert {request.problem_id for request in engine.requests} == {"p3", "p4", "p5"}
    assert {path.name: path.read_bytes() for path in shard_paths(tmp_path)} == before
    # The shards that were there count, without tokens: nothing was drawn for them.
    assert steps == [(6, 0), (2, 0), *[(1, 3)] * 6]


def test_the_first_shard_is_looked_at_while_others_are_to_come(tmp_path, draw_into):
    looks = []

    def look(table):
        looks.append(table.column("problem_id").to_pylist()[::2])

    draw_into(tmp_path / "three", look=look)
    assert looks == [["p0", "p1", "p2"]]
    draw_into(tmp_path / "three", look=look)  # all are there
    draw_into(tmp_path / "one", problems=PROBLEMS[:3], look=look)  # it is the last one too
    assert len(looks) == 1


def test_nothing_of_an_interrupted_shard_is_left(tmp_path, draw_into):
    class Interrupted(Backwards):
        def generate(self, requests, sampling, *, iteration=0):
            for rollout in super().generate(requests, sampling, iteration=iteration):
                if rollout.problem_id == "p4":
                    raise KeyboardInterrupt
                yield rollout

    with pytest.raises(KeyboardInterrupt):
        draw_into(tmp_path, Interrupted())
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]


@pytest.mark.parametrize(
    "changed",
    [
        {"sampling": dataclasses.replace(SAMPLING, seed=4)},
        {"sampling": dataclasses.replace(SAMPLING, stop=())},
        {"n": 3},
        {"iteration": 1},
        {"problems": PROBLEMS[::-1]},
        {"shard_problems": 2},
    ],
)
def test_a_directory_of_another_draw_is_refused_before_anything_is_drawn(
    tmp_path, draw_into, changed
):
    draw_into(tmp_path)
    engine = Backwards()
    with pytest.raises(RunDirectoryError, match="changed since it was drawn"):
        draw_into(tmp_path, engine, **changed)
    assert engine.requests == []


def test_shards_of_further_problems_are_refused(tmp_path, draw_into):
    draw_into(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"part-00001.parquet, part-00002.parquet beyond"):
        draw_into(tmp_path, problems=PROBLEMS[:3])


class Noting(Backwards):
    """Asks to be noted; interrupted after some completions, which come in its own order."""

    journal = True

    def __init__(self, after=None):
        super().__init__()
        self.after = after

    def generate(self, requests, sampling, *, iteration=0):
        drawn = super().generate(requests, sampling, iteration=iteration)
        for number, rollout in enumerate(drawn):
            if number == self.after:
                raise KeyboardInterrupt
            first = next(r.first_sample for r in requests if r.problem_id == rollout.problem_id)
            sample = rollout.sample + first
            yield dataclasses.replace(rollout, sample=sample, completion=f"é {sample}")


def test_what_an_interrupted_engine_answered_is_not_asked_again(tmp_path, draw_into):
    draw_into(tmp_path / "straight", Noting(), n=4)
    with pytest.raises(KeyboardInterrupt):
        draw_into(tmp_path / "other", Noting(after=5), n=4)
    journal = journal_path(tmp_path / "other", 0)
    with Journal(journal) as noted:
        assert len(noted.rollouts) == 5
        with pytest.raises(RunDirectoryError, match="another process draws into"):
            draw_into(tmp_path / "other", Noting(), n=4)
    with journal.open("ab") as file:
        file.write('{"problem_id": "é'.encode()[:-1])  # cut off within a character
    engine, steps = Noting(), []
    drawn = draw_into(tmp_path / "other", engine, n=4, steps=steps)
    assert drawn == 28 - 5
    asked = [(r.problem_id, r.first_sample, r.n) for r in engine.requests[:2]]
    assert asked == [("p0", 0, 4), ("p1", 0, 3)]  # p2's four and the last of p1 were there
    assert steps[0] == (5, 0)
    for one, other in zip(
        shard_paths(tmp_path / "straight"), shard_paths(tmp_path / "other"), strict=True
    ):
        assert one.read_bytes() == other.read_bytes()
    assert not list((tmp_path / "other").glob(".*"))


def test_gaps_are_asked_for_as_runs_of_samples(tmp_path, draw_into):
    whole = draw_whole(tmp_path / "whole", draw_into)
    with Journal(journal_path(tmp_path / "gaps", 0)) as journal:
        for place in (0, 2, 3, 7, 11):
            journal.add(whole[place])
    asked = []

    class Asked(Noting):
        def generate(self, requests, sampling, *, iteration=0):
            asked.extend((r.problem_id, r.first_sample, r.n) for r in requests)
            wanted = {(p, first + i) for p, first, n in asked for i in range(n)}
            return (r for r in whole if (r.problem_id, r.sample) in wanted)

    assert draw_into(tmp_path / "gaps", Asked(), problems=PROBLEMS[:2], n=6) == 7
    assert asked == [("p0", 1, 1), ("p0", 4, 2), ("p1", 0, 1), ("p1", 2, 3)]
    assert list(table_to_rollouts(read_table(tmp_path / "gaps"))) == whole


def draw_whole(directory, draw_into):
    draw_into(directory, Noting(), problems=PROBLEMS[:2], n=6)
    return list(table_to_rollouts(read_table(directory)))


def test_a_journal_that_is_complete_needs_no_engine(tmp_path, draw_into):
    """Killed between the last completion and the shard."""
    with Journal(journal_path(tmp_path / "again", 0)) as journal:
        for rollout in draw_whole(tmp_path / "whole", draw_into):
            journal.add(rollout)
    engine = Noting()
    assert draw_into(tmp_path / "again", engine, problems=PROBLEMS[:2], n=6) == 0
    assert engine.requests == []
    assert read_table(tmp_path / "again").equals(read_table(tmp_path / "whole"))


@pytest.mark.parametrize(
    "changed", [{"sampling": dataclasses.replace(SAMPLING, seed=4)}, {"iteration": 1}, {"n": 1}]
)
def test_a_journal_of_another_draw_is_refused(tmp_path, draw_into, changed):
    with pytest.raises(KeyboardInterrupt):
        draw_into(tmp_path, Noting(after=5))
    engine = Noting()
    with pytest.raises(RunDirectoryError, match="notes 5 completions of an interrupted draw"):
        draw_into(tmp_path, engine, **changed)
    assert engine.requests == []


def test_a_journal_that_is_none_is_refused(tmp_path, draw_into):
    journal_path(tmp_path, 0).write_text('{"problem_id": 3}\n[]\n')
    with pytest.raises(RunDirectoryError, match="cannot be read as rollouts"):
        draw_into(tmp_path, Noting())


def test_a_full_disk_costs_the_completion_that_it_cut(tmp_path, draw_into, monkeypatch):
    add = Journal.add

    def full(journal, rollout):
        if rollout.problem_id == "p1":
            journal._file.write(b'{"problem_id": "p1", "sam')
            raise OSError(28, "No space left on device")
        add(journal, rollout)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        with pytest.raises(OSError, match="No space left"):
            draw_into(tmp_path, Noting())
    assert draw_into(tmp_path, Noting()) == 14 - 2  # p2 was noted
    assert read_table(tmp_path).num_rows == 14


@pytest.mark.parametrize("room", [0, 10])
def test_a_journal_names_the_file_that_found_no_room(tmp_path, draw_into, monkeypatch, room):
    draw_into(tmp_path / "drawn")
    rollout = next(table_to_rollouts(read_table(tmp_path / "drawn")))

    class Full:
        def write(self, line):
            if room == 0:
                raise OSError(28, "No space left on device")
            return room

    with Journal(tmp_path / "journal") as journal, monkeypatch.context() as patch:
        patch.setattr(journal, "_file", Full())
        with pytest.raises(OSError, match=r"No space left on device: .*journal") as raised:
            journal.add(rollout)
    assert raised.value.errno == 28


class Spanning(Backwards):
    """Is given all shards at once, and finishes the last problem first."""

    spans_shards = True


def test_an_engine_may_be_asked_for_all_shards_at_once(tmp_path, draw_into):
    draw_into(tmp_path / "shard by shard")
    calls = []

    class Counting(Spanning):
        def generate(self, requests, sampling, *, iteration=0):
            calls.append([request.problem_id for request in requests])
            for rollout in super().generate(requests, sampling, iteration=iteration):
                yield dataclasses.replace(rollout, engine="backwards")

    together = tmp_path / "together"
    assert draw_into(together, Counting()) == 14
    (together / "part-00001.parquet").unlink()
    assert draw_into(together, Counting()) == 6
    assert draw_into(together, Counting()) == 0
    assert calls == [[f"p{i}" for i in range(7)], ["p3", "p4", "p5"]]
    assert [path.read_bytes() for path in shard_paths(together)] == [
        path.read_bytes() for path in shard_paths(tmp_path / "shard by shard")
    ]


def test_shards_that_are_complete_are_kept_when_such_an_engine_fails(tmp_path, draw_into):
    class Failing(Spanning):
        def generate(self, requests, sampling, *, iteration=0):
            for rollout in super().generate(requests, sampling, iteration=iteration):
                if rollout.problem_id == "p1":
                    raise EngineError("out of memory")
                yield rollout

    with pytest.raises(EngineError, match="out of memory"):
        draw_into(tmp_path, Failing())
    assert [path.name for path in shard_paths(tmp_path)] == [
        "part-00001.parquet", "part-00002.parquet"
    ]  # fmt: skip
    assert draw_into(tmp_path, Spanning()) == 6


@pytest.mark.parametrize("fault", ["lost", "twice", "stranger"])
def test_such_an_engine_that_returns_something_else_is_refused(tmp_path, draw_into, fault):
    class Faulty(Spanning):
        def generate(self, requests, sampling, *, iteration=0):
            first, *others = super().generate(requests, sampling, iteration=iteration)
            yield from others
            if fault != "lost":
                yield first
            if fault == "twice":
                yield first
            if fault == "stranger":
                yield dataclasses.replace(first, problem_id="x")

    with pytest.raises(EngineError, match="nothing of this shard is kept"):
        draw_into(tmp_path, Faulty())


@pytest.mark.parametrize("fault", ["lost", "twice", "stranger"])
def test_an_engine_that_returns_something_else_is_refused(tmp_path, draw_into, fault):
    class Faulty(Backwards):
        def generate(self, requests, sampling, *, iteration=0):
            first, *others = super().generate(requests, sampling, iteration=iteration)
            yield from others
            if fault == "twice":
                yield from (first, first)
            if fault == "stranger":
                yield dataclasses.replace(first, problem_id="x")

    with pytest.raises(EngineError, match="nothing of this shard is kept"):
        draw_into(tmp_path, Faulty())
    assert shard_paths(tmp_path) == []


def test_problems_that_share_an_id_are_refused(tmp_path, draw_into):
    with pytest.raises(DataError, match="'p1' is there twice"):
        draw_into(tmp_path, problems=[*PROBLEMS, PROBLEMS[1]])


def test_further_columns_of_the_problems_are_kept_where_asked_for(tmp_path, draw_into):
    problems = [
        dataclasses.replace(
            p, columns={"tests": [i] * (i % 3), "prompt": "x"} | ({"hint": f"{i}"} if i > 4 else {})
        )
        for i, p in enumerate(PROBLEMS)
    ]
    assert extra_columns(problems, "numeric") == {}  # topr's own graders need none
    draw_into(tmp_path / "without", problems=problems)
    draw_into(tmp_path / "with", problems=problems, extra=extra_columns(problems, "mine:reward"))
    plain, table = read_table(tmp_path / "without"), read_table(tmp_path / "with")
    assert table.column_names == [*plain.column_names, "tests", "hint"]
    assert table.select(plain.column_names).equals(plain)
    assert table["tests"].to_pylist() == [[i] * (i % 3) for i in range(7) for _ in range(2)]
    assert table["hint"].to_pylist() == [None] * 10 + ["5", "5", "6", "6"]


def test_a_further_column_of_unlike_types_becomes_text_as_in_any_file(tmp_path, draw_into):
    problems = [
        dataclasses.replace(p, columns={"level": i if i % 2 else "easy"})
        for i, p in enumerate(PROBLEMS)
    ]
    draw_into(tmp_path, problems=problems, extra=extra_columns(problems, "mine:reward"))
    levels = read_table(tmp_path)["level"].to_pylist()
    assert levels == [str(i) if i % 2 else "easy" for i in range(7) for _ in range(2)]
