"""The training benchmark: topr beside its peers on the same sequences, in turn, as one table.

    python benchmarks/training/run.py --peer-python .venv-trl/bin/python -o speed

Each round starts one process per entry, so that a machine whose speed drifts slows all of them; the
table has medians over rounds. Peers run in a virtual environment of their own
(`requirements-trl.txt`). Writes OUTPUT.json, with every run, and OUTPUT.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Settings of glibc that keep freed memory: topr's commands set their like by themselves.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
Entry = tuple[str, str, tuple[str, ...]]
"""Script, name, arguments."""
ENTRIES: dict[str, Entry] = {
    "topr": ("ours.py", "topr", ()),
    "topr, padded": ("ours.py", "topr", ("--layout", "padded")),
} | {
    f"TRL {trainer.upper()}Trainer, {settings}": (
        "peer_trl.py", "trl", ("--trainer", trainer, "--settings", settings),
    )
    for settings in ("best", "default")
    for trainer in ("sft", "grpo")
}  # fmt: skip


def run_once(entry: Entry, python: str, workload: str, options: argparse.Namespace) -> Any:
    script, peer, arguments = entry
    command = [
        python, str(HERE / script), "--workload", workload, "--threads", str(options.threads),
        "--steps", str(options.steps), *arguments,
    ]  # fmt: skip
    if options.prompts:
        command += ["--prompts", str(options.prompts)]
    environment = dict(os.environ)
    if "default" not in arguments or peer == "topr":
        environment |= KEEP_MEMORY
    if peer == "topr":
        environment["GOMP_SPINCOUNT"] = "2000"
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=3600
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def memory_mb(result: dict[str, Any]) -> float:
    """Peak beyond the interpreter, parameters, gradients and optimizer state."""
    return float(result["peak_rss_mb"] - result["interpreter_rss_mb"] - result["state_mb"])


def table(results: dict[str, dict[str, list[Any]]]) -> str:
    lines = [
        "| workload | what | completion tokens/s | topr's ratio | peak memory, MB | topr's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for workload, entries in results.items():
        speed = {
            name: statistics.median(r["completion_tokens"] / s for r in runs for s in r["seconds"])
            for name, runs in entries.items()
        }
        memory = {name: statistics.median(map(memory_mb, runs)) for name, runs in entries.items()}
        for name in entries:
            lines.append(
                f"| {workload} | {name} | {speed[name]:,.0f} | {speed['topr'] / speed[name]:.2f} | "
                f"{memory[name]:,.0f} | {memory['topr'] / memory[name]:.0%} |"
            )
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="of the environment with TRL")
    parser.add_argument("--output", "-o", type=Path, required=True, help="without a suffix")
    parser.add_argument("--workloads", nargs="+", default=["A", "B", "C"])
    parser.add_argument("--entries", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="timed steps of a process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, help="instead of the workload's number")
    return parser.parse_args()


def main() -> None:
    options = parse()
    pythons = {"topr": sys.executable, "trl": options.peer_python}
    results: dict[str, dict[str, list[Any]]] = {}
    for workload in options.workloads:
        runs: dict[str, list[Any]] = {name: [] for name in options.entries}
        results[workload] = runs
        for number in range(options.rounds):
            for name in options.entries:
                entry = ENTRIES[name]
                runs[name].append(run_once(entry, pythons[entry[1]], workload, options))
                print(workload, f"{number + 1}/{options.rounds}", name, runs[name][-1]["seconds"])
                sys.stdout.flush()
            about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
            options.output.with_suffix(".json").write_text(
                json.dumps({"about": about, "results": results}, indent=1) + "\n"
            )
            options.output.with_suffix(".md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
