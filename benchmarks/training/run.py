"""The training benchmark: topr beside its peers on the same sequences, in turn, as one table.

    python benchmarks/training/run.py --peer-python .venv-trl/bin/python -o speed

Each round starts one process per entry, so that a machine whose speed drifts slows all of them, and
measures the machine's rate of matrix products; the table has medians over rounds. The share is the
operations that the step needs (flops.py) a second, over that rate in the same type. Peers run in a
virtual environment of their own (`requirements-trl.txt`). Before a workload is timed, topr's
gradient on it is compared with a plain one. Writes OUTPUT.json, with every run, and OUTPUT.md.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from flops import model_flops
from launching import about, memory_mb, rates, run_once, write
from workloads import WORKLOADS, varied

from topr.objectives import OBJECTIVES

Entry = tuple[str, tuple[str, ...]]
"""Peer, arguments of its script."""
SMALLER_TILES = ("--tile", "1024", "4096")
"""Of TRL's fused head: its own are constants of its source."""
ENTRIES: dict[str, Entry] = {
    "topr": ("topr", ()),
    "topr, padded": ("topr", ("--layout", "padded")),
} | {
    f"TRL {trainer.upper()}Trainer, {name}": (
        "trl", ("--trainer", trainer, "--settings", settings, *more),
    )
    for name, settings, more in (
        ("best", "best", ()),
        ("best, smaller tiles", "best", SMALLER_TILES),
        ("default", "default", ()),
    )
    for trainer in ("sft", "grpo")
} | {
    "topr, Liger": ("topr", ("--liger",)),
    "TRL SFTTrainer, best, Liger": (
        "trl", ("--trainer", "sft", "--settings", "best", "--liger"),
    ),
}  # fmt: skip
ENTRIES |= {
    f"topr, {name}": ("topr", ("--objective", name)) for name in OBJECTIVES if name != "topr"
}
ASKED_FOR = tuple(f"topr, {name}" for name in OBJECTIVES)
"""Entries that run where they are named alone: objectives beside TOPR."""
NEED_A_GPU = tuple(name for name in ENTRIES if name.endswith("Liger"))
CHECKED_LAYERS = {"D": 2}
"""Of a model whose plain float32 gradient does not fit beside it."""
LARGEST_DIFFERENCE = 1e-3
"""Of a float32 gradient from the plain one, relative to its norm."""
LEAST_COSINE = 0.999
"""Of a bfloat16 gradient and the plain float32 one."""

Runs = dict[str, list[dict[str, Any]]]
"""Entry to its runs, one a round."""


def arguments_of(entry: Entry, workload: str, options: argparse.Namespace) -> list[str]:
    own = entry[1]
    arguments = ["--workload", workload, "--threads", str(options.threads), *own]
    if options.prompts:
        arguments += ["--prompts", str(options.prompts)]
    if options.dtype and "default" not in own:
        arguments += ["--dtype", options.dtype]
    return arguments


def fitting(workload: str, entries: list[str]) -> list[str]:
    """The entries that can run: GRPO compares the completions of a prompt with each other."""
    if WORKLOADS[workload].completions > 1:
        return entries
    unfit = [name for name in entries if "GRPO" in name]
    for name in unfit:
        print(f"{workload}: {name} is left out, since a prompt has one completion", flush=True)
    return [name for name in entries if name not in unfit]


def check(workload: str, options: argparse.Namespace) -> dict[str, Any]:
    """Compare topr's gradient with the plain one on some prompts; stop where it is another."""
    arguments = arguments_of(ENTRIES["topr"], workload, options)
    # Of two --prompts the last counts.
    prompts = min(options.check_prompts, options.prompts or WORKLOADS[workload].prompts)
    arguments += ["--check", "--prompts", str(prompts)]
    if workload in CHECKED_LAYERS:
        arguments += ["--layers", str(CHECKED_LAYERS[workload])]
    found = run_once("topr", sys.executable, arguments)
    exact = found["dtype"] == "float32"
    fits = (
        found["relative_difference"] <= LARGEST_DIFFERENCE
        if exact
        else found["cosine"] >= LEAST_COSINE
    )
    if not fits:
        raise SystemExit(f"topr's gradient is not that of the plain computation: {found}")
    return found


def shares(runs: Runs, rounds: list[dict[str, float]], flops: float) -> dict[str, float]:
    """Entry to its share of the rate in its own type, measured in the same round."""
    return {
        name: statistics.median(
            flops / second / rate[run["dtype"]]
            for run, rate in zip(found, rounds, strict=True)
            for second in run["seconds"]
        )
        for name, found in runs.items()
    }


def table(document: dict[str, Any]) -> str:
    lines = [
        "| workload | what | completion tokens/s | topr's ratio | peak memory, MB | topr's | "
        "share of matrix-product rate |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for workload, found in document["results"].items():
        runs = found["runs"]
        speed = {
            name: statistics.median(r["completion_tokens"] / s for r in of for s in r["seconds"])
            for name, of in runs.items()
        }
        memory = {name: statistics.median(map(memory_mb, of)) for name, of in runs.items()}
        share = shares(runs, found["rates"], found["model_flops"])
        for name in runs:
            lines.append(
                f"| {workload} | {name} | {speed[name]:,.0f} | {speed['topr'] / speed[name]:.2f} | "
                f"{memory[name]:,.0f} | {memory['topr'] / memory[name]:.0%} | {share[name]:.0%} |"
            )
    return "\n".join([*lines, "", gradients(document), "", machine(document)]) + "\n"


def gradients(document: dict[str, Any]) -> str:
    """What the gradients' comparison found, as one line."""
    found = [
        f"{name} ({c['dtype']}, {c['rows']} sequences) {c['relative_difference']:.1e}, cosine "
        f"{c['cosine']:.7f}, log-probabilities of sequences within "
        f"{c['sequence_logprob_difference']:.1e}"
        for name, result in document["results"].items()
        if (c := result["check"])
    ]
    return (
        f"topr's gradient, relative difference from a plain one: {'; '.join(found) or 'no check'}."
    )


def machine(document: dict[str, Any]) -> str:
    """What it ran on and with, as one line."""
    of = document["about"]
    rate: dict[str, list[float]] = {}
    versions: dict[str, dict[str, str]] = {}
    device = of["processor"]
    for result in document["results"].values():
        for measured in result["rates"]:
            for dtype, value in measured.items():
                rate.setdefault(dtype, []).append(value / 1e9)
        for runs in result["runs"].values():
            for run in runs:
                versions[run["peer"]] = run["versions"]
                device = run.get("device", device)
    products = ", ".join(f"{name} {min(v):.0f} to {max(v):.0f} GFLOP/s" for name, v in rate.items())
    packages = "; ".join(
        ", ".join(f"{name} {version}" for name, version in named.items())
        for named in versions.values()
    )
    return (
        f"{of['date']}; {device} ({', '.join(of['flags'])}), {of['cores']} cores, {of['threads']} "
        f"of them used; matrix products {products}; {packages}; `{of['command']}`"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="of the environment with TRL")
    parser.add_argument("--output", "-o", type=Path, required=True, help="without a suffix")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["A", "B", "C"])
    everywhere = [name for name in ENTRIES if name not in NEED_A_GPU + ASKED_FOR]
    parser.add_argument("--entries", nargs="+", choices=ENTRIES, default=everywhere)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="timed steps of a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, help="instead of the workload's number")
    parser.add_argument("--check-prompts", type=int, default=2, help="of the gradients' comparison")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of all but `default`")
    options = parser.parse_args()
    if "topr" not in options.entries:
        parser.error("--entries needs topr: the ratios are to it")
    return options


def main() -> None:
    options = parse()
    pythons = {"topr": sys.executable, "trl": options.peer_python}
    document: dict[str, Any] = {"about": about(options.threads), "results": {}}
    for workload in options.workloads:
        entries = fitting(workload, options.entries)
        runs: Runs = {name: [] for name in entries}
        result: dict[str, Any] = {
            "model_flops": model_flops(varied(WORKLOADS[workload], prompts=options.prompts)),
            "check": check(workload, options),
            "rates": [],
            "runs": runs,
        }
        print(workload, "gradient", result["check"], flush=True)
        document["results"][workload] = result
        for number in range(options.rounds):
            for name in runs:
                peer = ENTRIES[name][0]
                arguments = arguments_of(ENTRIES[name], workload, options)
                arguments += ["--steps", str(options.steps)]
                runs[name].append(run_once(peer, pythons[peer], arguments))
                place = f"{workload} {number + 1}/{options.rounds} {name}"
                print(place, runs[name][-1]["seconds"], flush=True)
            dtypes = sorted({of[-1]["dtype"] for of in runs.values()})
            result["rates"].append(rates(options.threads, dtypes))
            write(options.output.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
            write(options.output.with_suffix(".md"), table(document))
    print(table(document))


if __name__ == "__main__":
    main()
