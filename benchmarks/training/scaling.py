"""How a step's time and memory grow with the shape of its sequences, and a figure of it.

    python benchmarks/training/scaling.py -o scaling.json --figure docs/assets/scaling.svg

Workload A's layers with one number varied at a time and the others as in MIDDLE: completions per
prompt, prompt length, completion length, vocabulary. With --peer-python also TRL's SFTTrainer.
Each point is a process of its own in each round, forked from one that has done the imports; some
20 MB of library pages count with its memory, alike in all series. The JSON is written as it goes; a
run with the same file goes on where it stopped, and with nothing left to do it only draws.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from launching import Server, about, memory_mb, write

PROMPTS = 4
"""TRL's micro-batches are of 4 rows, and one completion per prompt has to fill one."""
MIDDLE = {"completions": 8, "prompt-length": 200, "completion-length": 100, "vocabulary": 8192}
AXES = {
    "completions": (1, 2, 4, 8, 16, 32),
    "prompt-length": (50, 100, 200, 400, 800, 1600),
    "completion-length": (25, 50, 100, 200, 400),
    "vocabulary": (100, 1000, 8192, 32_000, 128_256),
}
TITLES = {
    "completions": "completions per prompt",
    "prompt-length": "prompt, tokens",
    "completion-length": "completion, tokens (median)",
    "vocabulary": "vocabulary, entries",
}
SERIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "topr": ("topr", ("--layout", "shared")),
    "topr, padded": ("topr", ("--layout", "padded")),
    "TRL SFTTrainer, best": ("trl", ("--trainer", "sft", "--settings", "best")),
}
"""Name to peer and arguments of its script."""
LOOKS = {
    "topr": ("#0072b2", "o"),
    "topr, padded": ("#56b4e9", "s"),
    "TRL SFTTrainer, best": ("#d55e00", "^"),
}
"""Colour and marker, told apart by the colour-blind too."""
MEASURES = {
    "completion tokens per second": lambda run: run["completion_tokens_per_second"],
    "peak memory, MB": memory_mb,
}

Points = dict[str, dict[str, list[dict[str, Any]]]]
"""Shape (the arguments that make it) to series to its runs, one a round."""


def shape(axis: str, value: int) -> str:
    """The arguments of a point, which name it in the JSON: the axes share their middle."""
    return " ".join(f"--{name} {number}" for name, number in (MIDDLE | {axis: value}).items())


def measure(options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Run whatever the document lacks."""
    shapes = list(dict.fromkeys(shape(axis, v) for axis, values in AXES.items() for v in values))
    pythons = {"topr": sys.executable, "trl": options.peer_python}
    series = {name: s for name, s in SERIES.items() if pythons[s[0]]}
    log = options.output.with_suffix(".log")
    points: Points = document["points"]
    servers: dict[str, Server] = {}
    for number in range(options.rounds):
        for point in shapes:
            for name, (peer, own) in series.items():
                runs = points.setdefault(point, {}).setdefault(name, [])
                if len(runs) > number:
                    continue
                if peer not in servers:
                    servers[peer] = Server(peer, pythons[peer], log)
                arguments = ["--workload", "A", "--threads", str(options.threads), *own]
                arguments += ["--prompts", str(PROMPTS), "--steps", "1", *point.split()]
                runs.append(servers[peer].run(arguments))
                write(options.output, json.dumps(document, indent=1) + "\n")
                print(f"{number + 1}/{options.rounds} {point} {name} {runs[-1]['seconds']}")
                sys.stdout.flush()
    for server in servers.values():
        server.close()


def draw(document: dict[str, Any], path: Path) -> None:
    """Two rows of panels, speed and memory, with a column for each axis: medians, and a band from
    the lowest to the highest round."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "topr", "svg.fonttype": "none", "font.size": 10}
    figure, panels = plt.subplots(2, len(AXES), figsize=(13, 6), sharex="col", sharey="row")
    for row, (label, value_of) in zip(panels, MEASURES.items(), strict=True):
        row[0].set_ylabel(label)
        for panel, axis in zip(row, AXES, strict=True):
            draw_panel(panel, document["points"], axis, value_of)
    for panel, axis in zip(panels[1], AXES, strict=True):
        panel.set_xlabel(TITLES[axis])
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", ncols=len(names), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(path, metadata=metadata, facecolor="white", dpi=120)


def draw_panel(panel: Any, points: Points, axis: str, value_of: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    for name, (colour, marker) in LOOKS.items():
        found = {
            v: [value_of(run) for run in runs]
            for v in AXES[axis]
            if (runs := points.get(shape(axis, v), {}).get(name))
        }
        if not found:
            continue
        medians = [statistics.median(values) for values in found.values()]
        panel.plot(list(found), medians, color=colour, marker=marker, markersize=5, label=name)
        lows, highs = map(min, found.values()), map(max, found.values())
        panel.fill_between(list(found), list(lows), list(highs), color=colour, alpha=0.15, lw=0)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(AXES[axis], [short(v) for v in AXES[axis]])
    panel.axvline(MIDDLE[axis], color="0.8", linestyle=":", zorder=0)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.grid(color="0.92", which="major")
    panel.spines[["top", "right"]].set_visible(False)


def short(value: int) -> str:
    """A number for a tick: 128,256 is 128k."""
    return f"{value / 1000:.0f}k" if value >= 2000 else str(value)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="of the environment with TRL; none given: topr only")
    parser.add_argument("--output", "-o", type=Path, required=True, help="JSON, gone on with")
    parser.add_argument("--figure", type=Path, help="SVG or PNG")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = parse()
    document = {"about": about(options.threads), "points": {}}
    if options.output.exists():
        document = json.loads(options.output.read_text())
        if document["about"]["threads"] != options.threads:
            found = document["about"]["threads"]
            raise SystemExit(f"{options.output} was measured with {found} threads: use them again")
    measure(options, document)
    if options.figure:
        draw(document, options.figure)


if __name__ == "__main__":
    main()
