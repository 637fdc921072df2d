"""The page: a head, the goals, a section for each measure, and every figure in a table at the end."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from fanout.bench.report import charts
from fanout.bench.report.sections import charts_of
from fanout.bench.report.svg import short
from fanout.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Record = dict[str, Any]

STYLE = """
:root{color-scheme:light dark;--paper:#fbfbf9;--card:#fff;--ink:#1c2026;--soft:#626a75;--rule:#e4e4df;--grid:#ececE8;
--fanout:#0a5fd4;--fio-tuned:#d9631e;--fio-stock:#e3a25f;--python-threads:#23875a;--python-threads-bare:#7fbb8d;--dd-tee:#8552b8;
--driver:#59616d;--btrfs:#c23a5b;--rclone:#a6851f;--good:#0a8a5a;--bad:#c62f3b;--mid:#a86e00;--shade:#f3e6d3}
@media(prefers-color-scheme:dark){:root{--paper:#14171b;--card:#1c2026;--ink:#e9ebee;--soft:#9aa3af;--rule:#2d333b;--grid:#2a2f37;
--fanout:#5b9dff;--fio-tuned:#ff9352;--fio-stock:#d7ab7c;--python-threads:#4cc38a;--python-threads-bare:#86b896;--dd-tee:#b88cf0;
--driver:#a8b0bb;--btrfs:#ff7a96;--rclone:#d6b74c;--good:#41c48c;--bad:#ff6d76;--mid:#e0a93e;--shade:#3a3226}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 Inter,"Segoe UI",system-ui,-apple-system,"Helvetica Neue",sans-serif}
main{max-width:1140px;margin:0 auto;padding:44px 24px 72px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.02em;margin:0 0 6px}
h2{font-size:20px;letter-spacing:-.01em;margin:52px 0 2px}
h3{font-size:14px;margin:0 0 8px;font-weight:600}
p{margin:0 0 12px;max-width:100ch}
.soft,figcaption{color:var(--soft)}
.facts{display:flex;flex-wrap:wrap;gap:6px 8px;margin:16px 0 0;padding:0;list-style:none}
.facts li{border:1px solid var(--rule);background:var(--card);border-radius:99px;padding:2px 11px;font-size:13px;color:var(--soft)}
.facts b{color:var(--ink);font-weight:600}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:16px;margin:16px 0 0}
figure{margin:0;padding:16px 18px 14px;background:var(--card);border:1px solid var(--rule);border-radius:10px}
figcaption{font-size:12.5px;line-height:1.45;margin-top:8px}
svg{display:block;width:100%;height:auto;overflow:visible;font:12px Inter,"Segoe UI",system-ui,sans-serif}
table{border-collapse:collapse;width:100%;margin:14px 0 0;font-variant-numeric:tabular-nums}
th{text-align:left;font-size:12px;font-weight:600;color:var(--soft);border-bottom:1px solid var(--rule);padding:6px 10px 6px 0}
td{border-bottom:1px solid var(--rule);padding:7px 10px 7px 0;vertical-align:middle}
.n{text-align:right;white-space:nowrap}
.big{font-weight:650}
.gauge{width:200px}.gauge svg{width:190px}
.state{white-space:nowrap;font-size:13px;font-weight:600}
.yes{color:var(--good)}.no{color:var(--bad)}.half{color:var(--mid)}.none{color:var(--soft);font-weight:400}
details{margin-top:44px}summary{cursor:pointer;font-weight:600}
code{font:12.5px ui-monospace,"SF Mono",Menlo,Consolas,monospace;overflow-wrap:anywhere}
.wide{overflow-x:auto}
.grid{stroke:var(--grid);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}
.tick{fill:var(--soft);font-size:11.5px}.value{fill:var(--ink);font-size:12px;font-weight:600}
.name{font-size:12px;font-weight:550}.ink{fill:var(--ink)!important}.strong{font-weight:700}
.stroke{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}.fill{fill:currentColor}.pale{fill:currentColor;opacity:.2}
.band{fill:currentColor;opacity:.11;stroke:none}.thick{stroke:currentColor;stroke-width:3.5;stroke-linecap:round;opacity:.55}
text.name{fill:currentColor}.whisker{stroke:var(--ink);stroke-width:1.2;opacity:.65}
.even{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:4 4}
.good{fill:var(--good);opacity:.07}.good.strong{opacity:.35}.rail{fill:var(--grid)}.goal{stroke:var(--ink);stroke-width:1.6}
.shade{fill:var(--shade);opacity:.65}.mark{stroke:var(--bad);stroke-width:1.2;stroke-dasharray:2 3}
.slow{color:var(--bad);stroke-width:2.8}.healthy{color:var(--fanout);stroke-width:1.5}
.h1{opacity:.72}.h2{opacity:.55}.h3{opacity:.42}
.c-fanout{color:var(--fanout)}.stroke.c-fanout{stroke-width:3}.c-fio-tuned{color:var(--fio-tuned)}.c-fio-stock{color:var(--fio-stock)}
.c-python-threads{color:var(--python-threads)}.c-python-threads-bare{color:var(--python-threads-bare)}.c-dd-tee{color:var(--dd-tee)}
.c-driver{color:var(--driver)}.c-btrfs{color:var(--btrfs)}.c-rclone{color:var(--rclone)}
@media print{body{background:#fff}figure{break-inside:avoid}}
"""


def page(result: Mapping[str, Any]) -> str:
    """The whole page as text."""
    title = escape(result["scenario"]["title"])
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{title}: fanout</title><style>{STYLE}</style></head><body><main>",
            *_head(result, title),
            *_goals(result),
            *_measures(result),
            *_absent(result["absent"]),
            *_figures(result["figures"]),
            "</main></body></html>\n",
        )
    )


def _head(result: Mapping[str, Any], title: str) -> Iterator[str]:
    machine = result["machine"]
    yield f"<header><h1>{title}</h1>"
    if note := result["scenario"].get("note"):
        yield f'<p class="soft">{escape(note)}</p>'
    facts = (
        ("made", result["made_at"].replace("T", " ").removesuffix("Z") + " UTC"),
        ("in", format_seconds(result["seconds"])),
        ("fanout", result["fanout"]["revision"] or result["fanout"]["version"]),
        ("processor", f"{machine['processors_usable']} × {machine['processor']}"),
        ("memory", format_size(machine["memory_mib"] << 20)),
        ("Linux", machine["kernel"]),
        ("Python", machine["python"]),
        ("huge pages", machine["transparent_huge_pages"] or "unknown"),
        ("load", f"{machine['load_before']} before, {machine['load_after']} after"),
    )
    chips = "".join(f"<li>{name} <b>{escape(str(value))}</b></li>" for name, value in facts)
    yield f'<ul class="facts">{chips}</ul></header>'


# ---- goals ---------------------------------------------------------------------------------------

_GOALS_HEAD = (
    '<h2>Goals</h2><p class="soft">Each figure is the median over the rounds. The bar shows it with the middle half of '
    'its rounds, and a tick for each goal; the good side is green.</p><div class="wide"><table><tr><th></th>'
    '<th class="n">measured</th><th class="n">first</th><th class="n">then</th><th></th><th></th></tr>'
)


def _goals(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["goals"]:
        return
    yield _GOALS_HEAD
    for goal in result["goals"]:
        figure = result["figures"].get(goal["figure"])
        sign = "≥" if goal["at"] == "least" else "≤"
        levels = [f"{sign} {short(level)}" for level in goal["levels"]]
        first, then = [*levels, ""][:2]
        value = "–" if figure is None else f"{short(goal['value'])} {escape(goal['unit'])}".strip()
        picture = ""
        if figure is not None:
            low, high = figure["quartiles"]
            least = goal["at"] == "least"
            picture = charts.gauge(goal["value"], (low, high), goal["levels"], least=least)
        yield (
            f'<tr><td title="{escape(goal["figure"])}">{escape(goal["title"])}</td><td class="n big">{value}</td>'
            f'<td class="n">{first}</td><td class="n">{then}</td><td class="gauge">{picture}</td>{_state(goal["reached"])}</tr>'
        )
    yield "</table></div>"


def _state(reached: list[bool | None]) -> str:
    if None in reached:
        look, words = "none", "not measured"
    elif all(reached):
        look, words = "yes", "✓ reached"
    elif reached[0]:
        look, words = "half", "✓ first"
    else:
        look, words = "no", "✗ missed"
    return f'<td class="state {look}">{words}</td>'


# ---- measures ------------------------------------------------------------------------------------


def _measures(result: Mapping[str, Any]) -> Iterator[str]:
    for record in result["measures"]:
        drawn = charts_of(record, result["figures"])
        if not drawn:
            continue
        yield f"<section><h2>{escape(record['title'])}</h2>"
        yield f'<p class="soft">{escape(_about(record, result["targets"][record["on"]]))}</p><div class="cards">'
        for chart in drawn:
            note = f"<figcaption>{escape(chart.note)}</figcaption>" if chart.note else ""
            yield f"<figure><h3>{escape(chart.title)}</h3>{chart.drawing}{note}</figure>"
        yield "</div></section>"


def _about(record: Record, targets: Record) -> str:
    kind = {"files": "files", "loops": "loop devices", "devices": "block devices"}[targets["kind"]]
    over = {"memory": " in memory", "disk": " on disk", None: ""}[targets["over"]]
    counts = {point["targets"] for point in record.get("points", ())} or {targets["count"]}
    count = "–".join(str(number) for number in sorted({min(counts), max(counts)}))
    rounds = record["rounds"]
    words = f"{count} {kind}{over}, {rounds} {'round' if rounds == 1 else 'rounds'}"
    engine = record.get("engine")
    if engine:
        pages = ("small pages", "transparent huge pages", "reserved huge pages")[
            engine["huge_pages"]
        ]
        registered = "registered" if engine["registered"] else "not registered"
        words += f"; engine: {engine['backend']}, {pages}, {registered}"
    return f"{words}."


def _absent(absent: Mapping[str, str]) -> Iterator[str]:
    if absent:
        yield "<h2>Left out</h2><ul>"
        for name, why in absent.items():
            yield f"<li>{escape(name)}: {escape(why)}</li>"
        yield "</ul>"


def _figures(figures: Mapping[str, Record]) -> Iterator[str]:
    yield '<details><summary>Every figure</summary><div class="wide"><table><tr><th>figure</th><th></th>'
    yield '<th class="n">median</th><th class="n">middle half</th><th class="n">all rounds</th><th></th></tr>'
    for name, one in figures.items():
        low, high = one["quartiles"]
        yield (
            f"<tr><td><code>{escape(name)}</code></td><td>{escape(one['title'])}</td>"
            f'<td class="n big">{short(one["median"])}</td><td class="n">{short(low)} to {short(high)}</td>'
            f'<td class="n">{short(one["min"])} to {short(one["max"])}</td><td>{escape(one["unit"])}</td></tr>'
        )
    yield "</table></div></details>"
