"""The page of `twins diff --html`: two networks side by side, a row a pair, what differs marked."""

import html
import math
from typing import TYPE_CHECKING, Any

from shared import shapes

from . import training
from .remedies import in_words

if TYPE_CHECKING:
    from . import Comparison
    from .blame import Finding


def page(report: "Comparison") -> str:
    """A page that needs no other file."""
    at: dict[str, list[int]] = {}
    told = [*report.findings, *(report.training if report.trained else [])]
    for number, finding in enumerate(told, start=1):
        for pair in (finding.operations, *finding.others):
            for side, name in zip("ab", pair, strict=True):
                at.setdefault(f"{side} {name}", []).append(number)
    rows = "\n".join(_row(row, at) for row in report.rows).replace('"fault first"', '"fault" id="first"', 1)
    items = [_finding(number, finding) for number, finding in enumerate(told, start=1)]
    findings, in_training = items[: len(report.findings)], items[len(report.findings) :]
    heads = '<th scope="col"></th>'.join(
        f'<th scope="col">{side}: {html.escape(name)} <span>{html.escape(framework)}</span></th>'
        for side, name, framework in zip("AB", report.names, report.frameworks, strict=True)
    )
    return PAGE.format(
        title=html.escape(f"{report.names[0]} and {report.names[1]}"), verdict=_verdict(report), rows=rows, heads=heads,
        findings=_list(findings), training=_training(report, in_training, len(findings)), notes=_paragraphs(report.notes),
    )  # fmt: skip


def _list(items: list[str], start: int = 1) -> str:
    lines = "\n".join(items)
    return f'<ol start="{start}">\n{lines}\n</ol>' if items else ""


def _paragraphs(lines: list[str]) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _training(report: "Comparison", items: list[str], before: int) -> str:
    """What the steps of training showed, and what differs in training."""
    if report.trained is None:
        return ""
    return f"<h2>Training</h2>{_paragraphs(training.in_words(report.trained))}{_list(items, before + 1)}"


def _verdict(report: "Comparison") -> str:
    link = ' <a href="#first">The first difference</a>' if report.findings else ""
    return f"{report.in_words} {len(report.pairs)} operations paired.{link}"


def _finding(number: int, finding: "Finding") -> str:
    sides = "".join(
        f"<br>{side}: <code>{html.escape(name or '-')}</code>: {html.escape(in_words(value))} <span>{html.escape(line)}</span>"
        for side, name, value, line in zip("AB", finding.operations, finding.values, finding.sources, strict=True)
    )
    more = f"<br>and in {len(finding.others)} more" if finding.others else ""
    size = f"<br>differs by {finding.difference:.1e} on A's input" if math.isfinite(finding.difference) else ""
    remedy = f"<br>To fix B: <code>{html.escape(finding.remedy)}</code>" if finding.remedy else ""
    trap = f"<br>See <code>twins traps {finding.trap}</code>" if finding.trap else ""
    title = html.escape(f"{finding.kind}: {finding.attribute}".replace("_", " "))
    return f'<li id="finding-{number}"><b>{title}</b>{sides}{more}{size}{remedy}{trap}</li>'


def _row(row: dict[str, Any], at: dict[str, list[int]]) -> str:
    numbers = sorted({n for side in "ab" if row[side] for n in at.get(f"{side} {row[side]['name']}", [])})
    state = "fault first" if 1 in numbers else "fault" if numbers else "alone" if None in (row["a"], row["b"]) else "same"
    links = " ".join(f'<a href="#finding-{n}">{n}</a>' for n in numbers)
    difference = row["difference"]
    size = "" if difference is None else "∞" if math.isinf(difference) else f"{difference:.0e}" if difference else "0"
    middle = f'<td class="size">{links}<span>{size}</span></td>'
    return f'<tr class="{state}">{_cell(row["a"], "a")}{middle}{_cell(row["b"], "b")}</tr>'


def _cell(cell: dict[str, Any] | None, side: str) -> str:
    if cell is None:
        return f'<td class="{side} none"></td>'
    shape = shapes.text(tuple(cell["shape"]))
    title = html.escape(f"{cell['name']} {cell['source']}".strip(), quote=True)
    return (
        f'<td class="{side}" title="{title}"><code>{html.escape(cell["name"])}</code><span>{cell["kind"]} {shape}</span></td>'
    )


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1f2328; --back: #fff; --dim: #59636e; --line: #d1d9e0; --fault: #ffebe9;
  --edge: #cf222e; --alone: #fff8c5; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e6edf3; --back: #0d1117; --dim: #9198a1; --line: #3d444d;
  --fault: #4c1519; --edge: #f85149; --alone: #3a2f00; }} }}
body {{ margin: 0 auto; padding: 1rem; max-width: 80rem; color: var(--text); background: var(--back);
  font: 15px/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.35rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; }}
table {{ width: 100%; border-collapse: separate; border-spacing: 0 3px; table-layout: fixed; }}
th {{ text-align: left; padding: .3rem .5rem; overflow-wrap: anywhere; }}
th span, td span, li span {{ color: var(--dim); font-weight: normal; }}
td {{ padding: .15rem .5rem; overflow-wrap: anywhere; vertical-align: top; }}
td.a, td.b {{ border: 1px solid var(--line); border-radius: 5px; }}
td.none {{ border: 1px dashed var(--line); }}
td code, td span {{ display: block; font-size: 12px; }}
td code {{ font-size: 13px; }}
.middle {{ width: 5rem; }}
td.size {{ text-align: center; padding: .15rem 0; }}
td.size a {{ display: inline-block; min-width: 1.3em; border-radius: 1em; background: var(--edge); color: #fff;
  text-decoration: none; font-weight: bold; font-size: 12px; }}
.fault td.a, .fault td.b {{ background: var(--fault); border-color: var(--edge); }}
.alone td.a:not(.none), .alone td.b:not(.none) {{ background: var(--alone); }}
#first td.a, #first td.b {{ outline: 2px solid var(--edge); }}
li {{ margin: .6rem 0; overflow-wrap: anywhere; }}
@media (max-width: 40rem) {{
  body {{ padding: .5rem; }}
  .middle {{ width: 2.9rem; }}
  td {{ padding: .1rem .25rem; }}
  td code {{ font-size: 11px; }}
  td span {{ font-size: 10px; }}
}}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{verdict}</p>
{notes}
{findings}
{training}
<table>
<colgroup><col><col class="middle"><col></colgroup>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""
