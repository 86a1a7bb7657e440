"""Train on completions that you have: grade, choose, train, compare, all from Python.

    python examples/own_completions.py MODEL OUTPUT

MODEL is a directory or a hub name, such as the quickstart's `runs/quickstart/iteration-01/model`.
The rows here are a sample; put your own file in the place of `docs/completions.jsonl`.
"""

import sys
from pathlib import Path

import topr

SAMPLE = Path(__file__).parents[1] / "docs/completions.jsonl"


def main(model: str, output: str) -> None:
    rollouts = topr.read_rollouts(SAMPLE)  # prompt, completion, gold
    graded = topr.grade(rollouts, "numeric")  # + grade, reward (+1 or -1), answer
    dataset = topr.curate(graded, ["drop_duplicates", "drop_no_signal"])
    right = sum(reward > 0 for reward in dataset["reward"])
    print(f"{len(dataset)} of {len(graded)} completions are kept, {right} of them right")

    args = topr.TOPRConfig(
        output,
        behavior_logprobs="recompute",  # text has no log-probabilities
        optim="adamw_torch",
        learning_rate=1e-4,
        global_batch_size=32,
        num_train_epochs=2,
    )
    trainer = topr.TOPRTrainer(model, args, dataset)
    trainer.train()
    trainer.save_model(f"{output}/model")

    first, *_, last = [line for line in trainer.state.log_history if "loss" in line]
    for key in ("log_ratio/positive", "log_ratio/negative", "weight/negative"):
        print(f"{key}: {first[key]:.3f} -> {last[key]:.3f}")
    print(f"report: {topr.write_report(output)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
