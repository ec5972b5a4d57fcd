"""Results for people and for other programs: a table, CSV, a figure."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from candidates import Mode
from rich.console import Console
from rich.table import Table
from summary import Ceilings, Row, candidate

from twins import plots

# Of the table, beside the ratios: keys of the results, and their titles
COLUMNS = {
    "network": "network",
    "candidate": "candidate",
    "infer_samples_per_sec": "infer\nimages/s",
    "train_samples_per_sec": "train\nimages/s",
    "step_time": "step\nms",
    "step_time_p95": "p95\nms",
    "step_time_iqr": "spread\nms",
    "first_call": "first\nms",
    "peak_memory": "memory\nMiB",
    "batch_size": "batch",
    "ceiling_fraction": "of the\nceiling",
}
MODES = {Mode.INFER: "inference", Mode.TRAIN: "training"}  # and their titles
OUTLINE = "0.75"  # the grey of the machine's ceiling
GAP = 0.8  # between the bars of two networks


def show(results: Sequence[Row], notes: Sequence[str], ceilings: Ceilings) -> None:
    """Print the table, what the machine is and can do, and the notes."""
    others = list(dict.fromkeys(name for row in results for name in row["ratios"]))
    # A pipe has no width of its own: wide enough there for a row to stay a row.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120 + 24 * len(others))
    if results:
        console.print(table(results, others))
        first = results[0]
        versions = {name: version for row in results for name, version in row["versions"].items()}
        about = [first["device"], *map(" ".join, versions.items()), f"{first['threads']} threads"]
        console.print(", ".join(about), soft_wrap=True)
        for (backend, dtype), most in ceilings.items():
            rate, speed = most["flops"] / 1e9, most["bytes"] / 1e9
            console.print(f"Ceiling of {backend} in {dtype}: {rate:,.0f} GFLOP/s, {speed:,.0f} GB/s", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True)


def table(results: Sequence[Row], others: Sequence[str]) -> Table:
    """The results as a table, with a column for the ratio to each of the others."""
    grid = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    keys = [key for key in COLUMNS if key == "candidate" or any(key in row for row in results)]
    for key in keys:
        grid.add_column(COLUMNS[key], justify="left" if key in ("network", "candidate") else "right", no_wrap=key != "network")
    for name in others:
        grid.add_column(f"times\n{name}", justify="right", no_wrap=True)
    before = None
    for row in results:
        comparison = row["network"], row["mode"]
        if before and comparison != before:
            grid.add_section()
        before = comparison
        cells = {**row, "candidate": f"{row['backend']} {row['implementation']}"}
        values = [*(cells.get(key, "") for key in keys), *(row["ratios"].get(name, "") for name in others)]
        grid.add_row(*map(in_words, values))
    return grid


def in_words(value: Any) -> str:
    """A value of the results as the table has it; a ratio with its quartiles."""
    if isinstance(value, dict):
        return f"{value['median']:.2f} ({value['low']:.2f}–{value['high']:.2f})"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return "" if value is None else str(value)


def as_csv(results: Sequence[Row]) -> str:
    """The results as CSV: versions in words, and of each ratio its median and quartiles."""
    ends, flat = {"": "median", "_low": "low", "_high": "high"}, []
    for row in results:
        ratios = {f"times_{name}{end}": r[key] for name, r in row["ratios"].items() for end, key in ends.items()}
        sizes = {"img_size": "x".join(map(str, row["img_size"])), "versions": " ".join(map(" ".join, row["versions"].items()))}
        flat.append({key: value for key, value in row.items() if key != "ratios"} | sizes | ratios)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def draw(results: Sequence[Row], path: str | Path) -> None:
    """Draw images a second as bars, network by network, each in the outline of what the machine could do at most."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    modes = [mode for mode in MODES if any(row["mode"] == mode for row in results)]
    names = list(dict.fromkeys(candidate(row) for row in results))
    colours = dict(zip(names, colormaps["tab10"].colors * len(names), strict=False))  # type: ignore[attr-defined]
    tallest = max(sum(row["mode"] == mode for row in results) for mode in modes)
    networks = len({row["network"] for row in results})
    size = 6.2 * len(modes), 1.3 + 0.34 * tallest + 0.3 * networks
    with plots.figure(path, 1, len(modes), size, squeeze=False) as (canvas, panels):
        for axes, mode in zip(panels[0], modes, strict=True):
            draw_bars(axes, [row for row in results if row["mode"] == mode], f"{mode}_samples_per_sec", colours)
            axes.set_title(MODES[mode])
        bars = {label: bar for axes in panels[0] for bar, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        outline = Rectangle((0, 0), 1, 1, facecolor="none", edgecolor=OUTLINE)
        handles, labels = [*bars.values(), outline], [*bars, "the machine's ceiling"]
        canvas.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        batches = "/".join(str(size) for size in dict.fromkeys(row["batch_size"] for row in results))
        canvas.suptitle(f"{results[0]['device']}, {results[0]['threads']} threads, batch {batches}", fontsize=10)


def draw_bars(axes: Any, results: Sequence[Row], key: str, colours: dict[str, Any]) -> None:
    """Draw the rates of one mode, network by network."""
    y, ticks = 0.0, []
    for network in dict.fromkeys(row["network"] for row in results):
        group = [row for row in results if row["network"] == network]
        ticks.append((y + (len(group) - 1) / 2, network))
        for row in group:
            name, speed = candidate(row), row[key]
            share = row["ceiling_fraction"] or 1
            axes.barh(y, speed / share, color="none", edgecolor=OUTLINE, height=0.85)
            axes.barh(y, speed, color=colours[name], height=0.85, label=name)
            axes.text(speed / min(share, 1), y, f" {speed:,.3g}  ({100 * share:.0f} %)", va="center", fontsize=8)
            y += 1
        y += GAP
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.invert_yaxis()
    axes.set_xlabel("images a second (share of the machine's ceiling)")
    axes.margins(x=0.16)
    axes.spines[["top", "right"]].set_visible(False)
