"""Results for people and for other programs: a table, CSV, a figure."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from candidates import AGAIN, Mode, Peer
from rich.console import Console
from rich.table import Table
from summary import Ceilings, Row, candidate

from twins import plots

WIDTH = 80  # columns of a table that goes to a file
MODES = {Mode.INFER: "inference", Mode.TRAIN: "training"}  # and their titles
OUTLINE = "0.75"  # the grey of the machine's ceiling
GAP = 0.5  # between two networks, in bars
OTHERS = "other projects"
COLOURS = {"twins": "tab:cyan", "recommended": "tab:blue", OTHERS: "tab:gray"}  # of bars, by whose network it is


def show(results: Sequence[Row], notes: Sequence[str], ceilings: Ceilings) -> None:
    """Print the table, what the machine is and can do, and the notes."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if results:
        console.print(table(results))
        first = results[0]
        versions = {name: version for row in results for name, version in row["versions"].items()}
        about = [first["device"], *map(" ".join, versions.items()), f"{first['threads']} threads"]
        console.print(", ".join(about), soft_wrap=True)
        peers = dict.fromkeys(f"{peer} for {row['backend']}" for row in results if (peer := beside(row)))
        if peers:
            console.print(f"The peer: {', '.join(peers)}", soft_wrap=True)
        for (backend, dtype), most in ceilings.items():
            rate, speed = most["flops"] / 1e9, most["bytes"] / 1e9
            console.print(f"Ceiling of {backend} in {dtype}: {rate:,.0f} GFLOP/s, {speed:,.0f} GB/s", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True)


def table(results: Sequence[Row]) -> Table:
    """The results as a table: the rate, its share of the ceiling, and how many times that of the peer it is."""
    grid = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    words = ("network", "mode", "candidate", "type", *(["form"] if len(set(map(form, results))) > 1 else []))
    numbers = ("images/s", "of the\nceiling", *(["times\nthe peer"] if any(map(beside, results)) else []))
    for title in (*words, *numbers):
        grid.add_column(title, justify="left" if title in words else "right", overflow="fold")
    before = None
    for row in results:
        if before and (row["network"], row["mode"]) != before:
            grid.add_section()
        before = row["network"], row["mode"]
        share, peer = row["ceiling_fraction"], beside(row)
        cells = {
            "network": row["network"],
            "mode": row["mode"],
            "candidate": f"{row['backend']} {row['implementation']}",
            "type": row["dtype"],
            "form": form(row),
        }
        grid.add_row(
            *(cells[title] for title in words),
            rate_in_words(row[f"{row['mode']}_samples_per_sec"]),
            f"{share:.2f}" if share else "",
            in_words(row["ratios"][peer], row["processes"]) if peer else "",
        )
    return grid


def form(row: Row) -> str:
    """In what form a candidate was measured: memory format, compilation, batch."""
    compiled = " graphs" if row["cuda_graphs"] else " compiled" if row["compile"] else ""
    return f"{row['format']}{compiled} {row['batch_size']}"


def beside(row: Row) -> str | None:
    """The one candidate whose ratio the table has: another project's, else ours again, as built or in another backend."""
    ranks = [*(peer for peer in Peer if peer != Peer.TWINS), AGAIN, "twins"]
    names = [name for name in row["ratios"] if name.partition(" (")[0] in ranks]
    return min(names, key=lambda name: (ranks.index(name.partition(" (")[0]), name), default=None)


def rate_in_words(rate: float) -> str:
    """Images per second, with three figures or all before the point."""
    return f"{rate:.3g}" if rate < 100 else f"{rate:,.0f}"


def in_words(ratio: dict[str, Any], processes: int) -> str:
    """A ratio; of several processes with half the distance of their quartiles."""
    spread = f" ±{(ratio['high'] - ratio['low']) / 2:.2f}" if processes > 1 else ""
    return f"{ratio['median']:.2f}{spread}"


def as_json(source: dict[str, Any], notes: Sequence[str], results: Sequence[Row]) -> str:
    """The results as JSON, with where they come from: all that is measured, the ratios to all others among it."""
    return json.dumps({**source, "notes": notes, "results": results}, indent=2) + "\n"


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
    """Draw images per second as bars, network by network, each in the outline of what the machine could do at most."""
    from matplotlib.patches import Patch

    modes = [mode for mode in MODES if any(row["mode"] == mode for row in results)]
    tallest = max(sum(row["mode"] == mode for row in results) for mode in modes)
    networks = len({row["network"] for row in results})
    size = 7.4 * len(modes), 1.3 + 0.24 * (tallest + (1 + GAP) * networks)
    with plots.figure(path, 1, len(modes), size, squeeze=False) as (canvas, panels):
        for axes, mode in zip(panels[0], modes, strict=True):
            draw_bars(axes, [row for row in results if row["mode"] == mode], f"{mode}_samples_per_sec")
            axes.set_title(MODES[mode])
        shown = [whose for whose in COLOURS if any(colour_of(row) == COLOURS[whose] for row in results)]
        handles = [Patch(color=COLOURS[whose], label=whose) for whose in shown]
        handles.append(Patch(facecolor="none", edgecolor=OUTLINE, label="the machine's ceiling"))
        canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        batches = "/".join(str(size) for size in dict.fromkeys(row["batch_size"] for row in results))
        canvas.suptitle(f"{results[0]['device']}, {results[0]['threads']} threads, batch {batches}", fontsize=10)


def colour_of(row: Row) -> str:
    """The colour of whose network it is."""
    implementation = "twins" if row["implementation"] == AGAIN else row["implementation"]
    return COLOURS.get(implementation, COLOURS[OTHERS])


def draw_bars(axes: Any, results: Sequence[Row], key: str) -> None:
    """Draw the rates of one mode: under the name of each network, a bar a candidate."""
    y, ticks = 0.0, []
    networks = list(dict.fromkeys(row["network"] for row in results))
    for network in networks:
        ticks.append((y, network))
        for row in (row for row in results if row["network"] == network):
            y += 1
            speed, share = row[key], row["ceiling_fraction"] or 1
            axes.barh(y, speed / share, color="none", edgecolor=OUTLINE, height=0.85)
            axes.barh(y, speed, color=colour_of(row), height=0.85)
            axes.text(speed / min(share, 1), y, f" {speed:,.3g}  ({100 * share:.0f} %)", va="center", fontsize=8)
            ticks.append((y, candidate(row)))
        y += 1 + GAP
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks], fontsize=8)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in networks else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 1, -1)
    axes.set_xlabel("images per second (fraction of the machine's ceiling)")
    axes.margins(x=0.16)
    axes.spines[["top", "right"]].set_visible(False)
