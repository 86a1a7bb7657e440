"""Recipes: what is read, what is refused, and what is refused before hours are spent."""

import pytest

from topr.config import dump_recipe, load_recipe, shipped_recipes
from topr.config.engines import ServerConfig
from topr.config.recipe import comparisons
from topr.errors import ConfigError, RunDirectoryError, ToprError
from topr.runs.directory import lock_run_directory as held
from topr.runs.loop import run
from topr.store import begin


def test_a_hash_leaves_out_defaults(tmp_path):
    """So a key that a later version adds leaves the hashes of runs alone."""
    short, long = tmp_path / "short.yaml", tmp_path / "long.yaml"
    short.write_text("name: r\ntask: {name: jsonl, train_file: a.jsonl}")
    recipe = load_recipe(short)
    assert recipe.fixed() == {"name": "r", "task": {"name": "jsonl", "train_file": "a.jsonl"}}
    long.write_text(dump_recipe(recipe))
    assert load_recipe(long).fingerprint() == recipe.fingerprint()


def test_a_hash_says_which_rule_a_step_is():
    steps = [
        load_recipe("quickstart", [f"curate.steps=[{name}]"]).fixed()["curate"]
        for name in ("positives", "drop_no_signal")
    ]
    assert steps == [{"steps": [{"rule": "positives"}]}, {"steps": [{"rule": "drop_no_signal"}]}]


@pytest.mark.parametrize(
    "change",
    [
        "train.micro_batch_tokens=512", "train.gradient_checkpointing=true", "train.layout=padded",
        "train.save_steps=7", "train.logging_steps=50", "train.report_to=[wandb]",
        "train.watch=off", "generate.batch_size=3", "generate.server.url=http://a/v1",
        "generate.ray.workers=2", "grade.workers=1",
        "grade.none_right=warn", "loop.keep_models=last", "needs=patience",
        "verifier.grade.workers=2", "verifier.generate.batch_size=8",
    ],
)  # fmt: skip
def test_a_run_resumes_with_settings_that_change_no_number(change, tmp_path):
    verifier = ["verifier={task: {mix: natural}}"]
    begun = load_recipe("quickstart", verifier)
    changed = load_recipe("quickstart", [*verifier, change])
    assert changed != begun
    with held(begun, tmp_path / "run"):
        (tmp_path / "run/work").write_text("")
    with held(changed, tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    "change",
    [
        "task.split=validation",
        "task.test_split=train",
        "task.subset=socratic",
        "train.mask_truncated=true",
        "evaluate.split=validation",
    ],
)
def test_a_key_that_is_added_counts_where_it_is_used(change):
    assert load_recipe("gsm8k", [change]).fingerprint() != load_recipe("gsm8k").fingerprint()


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_shipped_recipe_survives_being_written_out(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "resolved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    assert recipe.description
    assert recipe.needs


def test_overrides_are_yaml_and_numbers_need_no_dot():
    recipe = load_recipe(
        "quickstart",
        ["train.learning_rate=1e-6", "compare={}", "evaluate.pass_at=[1, 2]", "generate.stop=[a]"],
    )
    assert recipe.train.learning_rate == 1e-6
    assert recipe.compare == {}
    assert recipe.evaluate.pass_at == (1, 2)
    assert recipe.generate.stop == ("a",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.learning_rte=1",
            r"unknown key 'train.learning_rte'; did you mean 'train.learning_rate'",
        ),
        ("trian.max_steps=1", r"unknown key 'trian'; did you mean 'train'"),
        ("task.tain_problems=1", r"did you mean 'task.train_problems'"),
        ("train.learning_rate=-1", r"train.learning_rate: .*greater than 0 \(found -1\)"),
        ("train.max_steps", r"has no value: write it as key.key=value"),
        ("train.baseline=0.1", None),
        ("train.effective_positive_share=0.2", r"both baseline=-0.3 and"),
        ("train.skip_negatives=1.5", r"train.skip_negatives"),
        ("train.normalization_constant=3", r"normalization_constant=3.0 does nothing"),
        ("curate.strategy=all", r"unknown key 'curate.strategy'; known keys: steps"),
        ("curate.steps=[postives]", r"unknown rule 'postives'; did you mean 'positives'"),
        ("curate.steps=[cap]", r"curate.steps.0.cap.per_problem: Field required"),
        ("curate.steps=[{per_problem: 3}]", r"curate.steps.0: no key 'rule'"),
        (
            "curate.steps=[all, {rule: cap, per_problem: 3, sed: 1}]",
            r"unknown key 'curate.steps.1.cap.sed'; known keys: rule, per_problem",
        ),
        ("curate.steps=[{rule: anna_karenina, max_positives: 20}]", r"max_positives=20 with per_"),
        ("curate.steps=[{rule: pass_rate}]", r"drops nothing: set lowest or highest"),
        (
            "curate.steps=[{rule: positive_share, share: 0.2, by: baseline}]",
            r"set train.effective_positive_share=0.2",
        ),
    ],
)
def test_what_is_wrong_is_named(override, message):
    if message is None:
        load_recipe("quickstart", [override])
        return
    with pytest.raises(ConfigError, match=message):
        load_recipe("quickstart", [override])


def test_a_comparison_may_set_the_other_of_baseline_and_share():
    recipe = load_recipe(
        "quickstart", ["train.baseline=null", "train.effective_positive_share=0.2"]
    )
    _, sft = comparisons(recipe)["sft"]
    assert (sft.baseline, sft.effective_positive_share) == (0.0, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["generate.top_k=5"], "behavior_logprobs=sampler: recorded log-probabilities"),
        (["generate.top_p=0.9"], "behavior_logprobs=sampler: recorded log-probabilities"),
        (
            ["train.objective=grpo", "train.global_batch_size=8"],
            "train.global_batch_size to at least 16",
        ),
        (["train.objective=tpor"], "did you mean|Did you mean 'topr'"),
        (["train.training_arguments={lerning: 1}"], "training_arguments.lerning is unknown"),
        (
            ["train.training_arguments={push_to_hub: true}"],
            "leave it out, and upload.* `topr push`",
        ),
        (
            ["train.training_arguments={hub_model_id: a/b}"],
            "leave it out, and upload.* `topr push`",
        ),
        (["compare={base: {}}"], "compare.base: a comparison's name"),
        # What was found out only after evaluating, drawing and grading.
        (["train.baseline=5"], r"train.baseline=5 with rewards of \+1 and -1"),
        (["train.baseline=-1.5"], r"train.baseline=-1.5 with rewards of \+1 and -1"),
        (["generate.temperature=0"], "generate.temperature=0 with objective topr"),
        (
            ["generate.temperature=0", "train.behavior_logprobs=recompute"],
            "generate.temperature=0 with objective topr",
        ),
        (
            ["generate.temperature=0", "train.objective=sft", "compare={}"],
            "generate.temperature=0 with train.behavior_logprobs=sampler",
        ),
        (["train.shuffle_by=prompt", "train.global_batch_size=8"], "to at least 16"),
        (["compare={d: {train: {objective: dpo, baseline: -1}}}"], "no gradient would flow"),
        (
            [
                "curate.steps=[positives]",
                "train.baseline=null",
                "compare={}",
                "train.effective_positive_share=0.2",
            ],
            "no negatives to weigh against",
        ),
        (
            ["curate.steps=[positives]", "train.objective=dpo", "compare={}"],
            "no negatives to weigh against",
        ),
        (
            [
                "train.baseline=null",
                "train.effective_positive_share=0.2",
                "compare={g: {train: {objective: grpo}}}",
            ],
            "effective_positive_share=0.2 does not hold with objective 'grpo'",
        ),
        # Completions that all earn the same, whatever they are: no group has a gradient.
        (["curate.steps=[positives]", "compare={g: {train: {objective: grpo}}}"], "so no gradient"),
        (
            ["generate.n=1", "compare={d: {train: {objective: dpo}}}"],
            "objective dpo with one completion of a problem",
        ),
        (
            ["curate.steps=[{rule: cap, per_problem: 1}]", "train.objective=gspo", "compare={}"],
            "objective gspo with one completion of a problem",
        ),
        (["train.training_arguments={gradient_accumulation_steps: 0}"], "gradient_accumulation"),
        (["train.training_arguments={optim_args: lr=3}"], "optim_args=lr=3 does nothing"),
        (["train.optim=adamw_troch"], "no optim 'adamw_troch'; did you mean 'adamw_torch'"),
        (["train.objective_args={lookahead: -1}"], "lookahead=-1"),
        (["train.report_to=[comet_ml]"], "report_to"),
        (["train.training_arguments={neftune_noise_alpha: 5}"], "neftune_noise_alpha=5"),
        (["train.training_arguments={fp16: true}", "model.device=cpu"], "fp16: .* a CPU"),
    ],
)
def test_a_run_that_would_fail_hours_later_is_refused_at_once(tmp_path, overrides, message):
    recipe = load_recipe("quickstart", overrides)
    with pytest.raises(ToprError, match=message):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rules_without_options_are_written_as_bare_names():
    bare = load_recipe("quickstart", ["curate.steps=[drop_duplicates, {rule: positives}]"])
    assert [step.rule for step in bare.curate.steps] == ["drop_duplicates", "positives"]
    sections, _ = comparisons(bare)["reinforce"]
    assert sections == bare.curate
    sections, _ = comparisons(bare)["sft"]
    assert [step.rule for step in sections.steps] == ["positives"]


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"extra_body": {"temperature": 0.3}}, "extra_body.temperature would change what is"),
        ({"extra_body": {"api_key": "sk-1"}}, "extra_body.api_key holds a secret"),
        ({"command": ["vllm", "--port", "{port}", "--api-key", "sk-1"]}, "--api-key holds a sec"),
        ({"arguments": ["--hf-token=hf_1"]}, "hf_1 holds a secret"),
        ({"url": "http://me:secret@host:8000/v1"}, "url holds a secret"),
    ],
)
def test_what_a_server_is_asked_is_what_rollouts_say_and_no_secret(server, message):
    with pytest.raises(ValueError, match=message):
        ServerConfig(**server)
    ServerConfig(extra_body={"no_stop_trim": True}, arguments=("--max-model-len", "4096"))


def test_a_directory_belongs_to_a_recipe_once_something_was_made(tmp_path):
    home, part = tmp_path / "run", tmp_path / "run/iteration-01/rollouts"
    first, second = load_recipe("quickstart"), load_recipe("quickstart", ["seed=1"])
    with (
        pytest.raises(ZeroDivisionError),
        held(first, home),
        begin(part, "generate", "first"),
    ):
        raise ZeroDivisionError  # before anything was drawn
    with held(second, home), begin(part, "generate", "second") as done:
        assert done is None
        assert load_recipe(home / "recipe.yaml") == second
        (part / ".part-00000.partial.jsonl").write_text("one completion")
    with (
        pytest.raises(RunDirectoryError, match=r"seed \(1 there, 0 now\)"),
        held(first, home),
    ):
        pass
    with held(second, home):
        pass


@pytest.mark.parametrize("section", ["train", "verifier.train", "compare.other.train"])
def test_a_run_under_old_names_resumes(tmp_path, section):
    other = "compare={other: {train: {learning_rate: 1e-3}}}"
    keys = [f"{section}.loss_normalization=none", f"{section}.global_batch_size=128"]
    recipe = load_recipe("quickstart", [other, *keys])
    with held(recipe, tmp_path / "run"):
        (tmp_path / "run/work").write_text("")
    there = tmp_path / "run/recipe.yaml"
    old = there.read_text().replace("loss_normalization", "normalization")
    there.write_text(old.replace("global_batch_size", "batch_size"))
    with held(recipe, tmp_path / "run"):
        pass
    changed = load_recipe("quickstart", [other, *keys, f"{section}.global_batch_size=64"])
    name = rf"differs in {section}.global_batch_size \(128 there, 64 now\)\."
    with (
        pytest.raises(RunDirectoryError, match=name),
        held(changed, tmp_path / "run"),
    ):
        pass
    assert load_recipe(there).fingerprint() == recipe.fingerprint()


def test_a_recipe_has_a_key_once(tmp_path):
    path = tmp_path / "r.yaml"
    train = "train: {batch_size: 8, global_batch_size: 16}"
    for text in (train, f"verifier: {{{train}}}", f"compare: {{a: {{{train}}}}}"):
        path.write_text("task: {name: jsonl, train_file: a.jsonl}\n" + text)
        with pytest.raises(ConfigError, match="both batch_size and global_batch_size"):
            load_recipe(path)


@pytest.mark.parametrize("seed", [-1, 2**31, "x"])
def test_a_seed_is_one_that_every_stage_can_have(seed):
    with pytest.raises(ConfigError, match="seed: "):
        load_recipe("quickstart", [f"seed={seed}"])


@pytest.mark.parametrize(
    "override",
    ["train.baseline=true", "generate.n=true", "evaluate.pass_at=[1, true]", "seed=false"],
)
def test_true_and_false_are_no_numbers(override):
    with pytest.raises(ConfigError, match="expected a number"):
        load_recipe("quickstart", [override])
