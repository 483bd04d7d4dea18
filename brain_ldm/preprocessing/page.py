"""qc/index.html: every scan on the template, to be looked through and marked. Needs no network."""

import math
from pathlib import Path
from typing import Any

import jinja2

# Scans that a browser lays out together, only when they come into view; whole lines for 1 to 6
# columns. Their height is known beforehand, so that the page does not jump.
GROUP = 60
LINE = 308  # pixels from one picture to the one below
BIN = 0.02  # of the histogram of scores
WIDE, HIGH = 680, 120  # pixels of the histogram

STYLE = """
:root { color-scheme: light dark; --columns: 1;
  --ink: #1b1f24; --paper: #ffffff; --quiet: #5d666f; --line: #dfe3e8; --card: #f6f7f9;
  --accent: #1f6feb; --bad: #c62f2f; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e8ebee; --paper: #121417; --quiet: #9aa3ad; --line: #2b3036; --card: #1a1d21;
  --accent: #6ea8ff; --bad: #ff7b72; } }
* { box-sizing: border-box; }
html { scroll-padding: 4.5rem 0 1rem; }
body { margin: 0 auto; max-width: {{ 6 * (width + 26) + 46 }}px; padding: 3rem 1.5rem 5rem;
  color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .3rem; letter-spacing: -.01em; }
p { max-width: 46rem; margin: .4rem 0 .9rem; }
.lead, .caption { color: var(--quiet); }
.caption { font-size: .92rem; }
code, textarea { font: .86em/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
kbd { font: .86em ui-monospace, "DejaVu Sans Mono", monospace; padding: .05rem .35rem;
  border: 1px solid var(--line); border-radius: 4px; background: var(--card); }
a { color: var(--accent); }
svg { display: block; max-width: 100%; height: auto; font-size: 12px; fill: var(--quiet); }
svg .kept { fill: var(--accent); } svg .rejected { fill: var(--bad); }
svg line { stroke: var(--line); } svg line.least { stroke: var(--ink); stroke-dasharray: 4 3; }
#bar { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .4rem 1.2rem;
  align-items: center; margin: 1.5rem -1.5rem 0; padding: .6rem 1.5rem; background: var(--card);
  border: solid var(--line); border-width: 1px 0; font-variant-numeric: tabular-nums; }
#bar details[open] { flex-basis: 100%; }
#bar button { font: inherit; font-size: .92rem; padding: .2rem .8rem; color: var(--ink);
  background: var(--paper); border: 1px solid var(--line); border-radius: 6px; cursor: pointer; }
textarea { display: block; width: 100%; max-width: 46rem; height: 12rem; margin-top: .5rem;
  color: var(--ink); background: var(--paper); border: 1px solid var(--line); }
summary { cursor: pointer; }
.scans { display: grid; gap: 0 1.2rem;
  grid-template-columns: repeat(var(--columns), minmax(0, {{ width + 6 }}px));
  margin: 0; padding: 0; list-style: none; }
.scans.whole { content-visibility: auto;
  contain-intrinsic-height: calc({{ group * line }}px / var(--columns)); }
.scans li { height: {{ line }}px; padding-top: 1rem; overflow: hidden; font-size: .88rem;
  line-height: 1.4; overflow-wrap: anywhere; }
{% for columns in range(2, 7) %}
@media (min-width: {{ columns * (width + 26) + 46 }}px) { :root { --columns: {{ columns }}; } }
{% endfor %}
.scans button { display: block; padding: 0; border: 3px solid transparent; border-radius: 8px;
  background: #000; color: #f2f4f6; cursor: pointer; overflow: hidden; }
.scans button:focus-visible { outline: 3px solid var(--accent); outline-offset: -3px; }
.scans button[aria-pressed=true] { border-color: var(--bad); }
.scans button[aria-pressed=true] img { opacity: .45; }
.scans img { display: block; max-width: 100%; height: auto; }
b { font-weight: 650; font-variant-numeric: tabular-nums; }
em, .reason { color: var(--bad); font-style: normal; font-weight: 600; }
.scans code { display: block; color: var(--quiet); }
table { border-collapse: collapse; font-size: .92rem; margin: .8rem 0; }
th, td { text-align: left; padding: .42rem 1.2rem .42rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; color: var(--quiet); }
"""

# Marks are kept where they differ from reject.txt, so those that were saved there are forgotten.
SCRIPT = """
"use strict";
const element = id => document.getElementById(id);
const key = "brain_ldm preprocess " + document.body.dataset.cohort;
const original = element("text").defaultValue;  // reject.txt when this page was written
const participant = line => line.trim().split(/\\s/)[0];
const names = original.split("\\n").map(participant);
const listed = new Set(names.filter(name => name && !name.startsWith("#")));
const buttons = Array.from(document.querySelectorAll(".scans button"));
const changed = new Map();  // participant to whether it is rejected, where reject.txt differs

function recall() {
  let stored = [];
  try { stored = JSON.parse(localStorage.getItem(key)) ?? []; }
  catch { element("memory").hidden = false; }
  for (const [name, rejected] of stored)
    if (rejected !== listed.has(name)) changed.set(name, rejected);
}

function remember() {
  try { localStorage.setItem(key, JSON.stringify([...changed])); }
  catch { element("memory").hidden = false; }
}

function show(button) {
  const name = button.parentElement.id, inFile = listed.has(name);
  const rejected = changed.get(name) ?? inFile;
  button.setAttribute("aria-pressed", rejected);
  button.parentElement.querySelector("em").textContent =
    rejected ? (inFile ? "in reject.txt" : "rejected") : (inFile ? "to be taken again" : "");
}

function tell() {
  const added = [...changed.keys()].filter(name => changed.get(name));
  const kept = original.split("\\n").filter(line => changed.get(participant(line)) !== false);
  while (kept.at(-1) === "") kept.pop();
  element("text").value = [...kept, ...added, ""].join("\\n");
  const parts = [`${added.length} marked`, `${listed.size} in reject.txt`];
  const back = changed.size - added.length;
  if (back) parts.push(`${back} to be taken again`);
  element("count").textContent = parts.join(", ");
}

function toggle(button) {
  const name = button.parentElement.id;
  const rejected = !(changed.get(name) ?? listed.has(name));
  if (rejected === listed.has(name)) changed.delete(name); else changed.set(name, rejected);
  show(button);
  tell();
  remember();
}

function move(button) {
  if (!button) return;
  button.focus({preventScroll: true});
  button.parentElement.scrollIntoView({block: "nearest"});
}

function columns() {
  return Number(getComputedStyle(document.documentElement).getPropertyValue("--columns"));
}

document.addEventListener("click", event => {
  const button = event.target.closest(".scans button");
  if (!button) return;
  button.focus({preventScroll: true});  // Safari does not by itself
  toggle(button);
});

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target === element("text")) return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "x"].includes(pressed)) return;
  const at = buttons.indexOf(document.activeElement);
  if (at < 0) {
    if (pressed === "x") return;
    const bottom = element("bar").getBoundingClientRect().bottom;
    move(buttons.find(b => b.parentElement.getBoundingClientRect().top >= bottom));
  } else if (pressed === "x") {
    toggle(buttons[at]);
  } else {
    const step = {ArrowLeft: -1, ArrowRight: 1}[pressed]
      ?? columns() * (pressed === "ArrowUp" ? -1 : 1);
    move(buttons[at + step]);
  }
  event.preventDefault();
});

element("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([element("text").value], {type: "text/plain"}));
  link.download = "reject.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

element("copy").addEventListener("click", async () => {
  element("text").closest("details").open = true;
  element("text").select();  // to be copied by hand where the browser forbids the rest
  await navigator.clipboard?.writeText(element("text").value);
});

recall();
buttons.filter(button => changed.has(button.parentElement.id)).forEach(show);
tell();
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ root.name }}: quality control</title>
<style>{{ style|safe }}</style>
</head>
<body data-cohort="{{ root }}">
{%- macro picture(row, alt) -%}
{% if row.picture %}<img src="{{ row.participant_id|urlencode }}.jpg" alt="{{ alt }}" loading="lazy"
 width="{{ width }}" height="{{ height }}">{% else %}{{ alt }} (no picture){% endif %}
{%- endmacro %}
{%- macro card(row) -%}
<li id="{{ row.participant_id }}">
{%- if not row.reason or row.listed -%}
<button aria-pressed="{{ row.listed|lower }}">{{ picture(row, "Reject " ~ row.participant_id) }}
{#- #}</button>
{%- else %}{{ picture(row, row.participant_id) }}{% endif -%}
<b>{{ row.participant_id }}</b> {{ score(row.score) }} <em>{{ "in reject.txt" if row.listed }}</em>
{%- if row.reason %} <span class="reason">{{ row.reason }}</span>{% endif -%}
<code>{{ row.source }}</code></li>
{%- endmacro %}
{%- macro cards(rows) -%}
{% for some in rows|batch(group) %}
<ol class="scans{{ " whole" if not loop.last }}">
{% for row in some %}
{{ card(row) }}
{% endfor %}
</ol>
{% endfor %}
{%- endmacro %}
<h1>Quality control</h1>
<p class="lead">{{ "{:,}".format(kept|length + seen|length + unseen|length) }} scans of
<code>{{ root }}</code>, brought to MNI152: {{ "{:,}".format(kept|length) }} kept,
{{ "{:,}".format(seen|length + unseen|length) }} rejected.</p>
<p>Orange is the outline of the template’s brain, blue its midline. Look for a brain that leaves its
outline, tilts in it, or is cut off, and for hemispheres that do not part along the midline. A brain
that is only larger or smaller than the outline is fine: scans are moved and turned, not scaled.
Sagittal, coronal and axial planes at {{ planes }}; the participant’s left is on the left.</p>
<p>Click a picture, or press <kbd>x</kbd> on it, to reject its scan; the arrow keys move. Save the
list as <code>{{ reject }}</code>, in place of the old one, and run the same command again. Until
then this browser remembers the marks.</p>
{% if bars %}
<svg viewBox="-20 -18 {{ wide + 40 }} {{ high + 38 }}" width="{{ wide + 40 }}"
height="{{ high + 38 }}" role="group" aria-label="Histogram of scores">
{% for bar in bars %}
<a href="#{{ bar.first|urlencode }}"><title>{{ bar.title }}</title>
{%- for kind, y, height in bar.parts -%}
<rect class="{{ kind }}" x="{{ bar.x }}" y="{{ y }}" width="{{ bar.width }}" height="{{ height }}"/>
{%- endfor %}</a>
{% endfor %}
<line x1="0" y1="{{ high }}" x2="{{ wide }}" y2="{{ high }}"/>
{% for x, text in ticks %}
<text x="{{ x }}" y="{{ high + 16 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
<line class="least" x1="{{ least_x }}" y1="-2" x2="{{ least_x }}" y2="{{ high }}"/>
<text x="{{ least_x }}" y="-6" text-anchor="middle">least_correlation={{ least }}</text>
</svg>
<p class="caption">Scans by their score, the correlation with the template. Kept ones are blue,
rejected ones red; a bar leads to its first scan.</p>
{% endif %}
<div id="bar">
<b id="count" role="status"></b>
<button id="download">Download reject.txt</button>
<button id="copy">Copy</button>
<a href="#kept">Kept</a>
<a href="#rejected">Rejected</a>
<span id="memory" class="caption" hidden>This browser forgets marks when the page is closed.</span>
<details><summary>List</summary>
<textarea id="text" aria-label="reject.txt" readonly autocomplete="off" spellcheck="false">
{{ text }}</textarea></details>
</div>
<h2 id="kept">Kept, lowest score first</h2>
{{ cards(kept) }}
<h2 id="rejected">Rejected</h2>
<p>By their score, by what is wrong with the file, or by a person. Those in reject.txt can be taken
back here; whether the others are taken is up to the command’s options.</p>
{{ cards(seen) }}
{% if unseen %}
<table>
<tr><th>Without a picture</th><th>reason</th><th>file</th></tr>
{% for row in unseen %}
<tr id="{{ row.participant_id }}"><td>{{ row.participant_id }}</td><td>{{ row.reason }}</td>
<td><code>{{ row.source }}</code></td></tr>
{% endfor %}
</table>
{% endif %}
<script>{{ script|safe }}</script>
</body>
</html>
"""


def page(
    root: Path,
    scans: list[dict[str, Any]],
    least_correlation: float,
    reject: Path,
    text: str,
    look: dict[str, Any],
) -> str:
    """Return qc/index.html of a cohort.

    Args:
        root: folder of the cohort.
        scans: in the order to be shown; see `qc.write_page`, and `picture` and `listed`: whether
            there is a picture, and whether `text` names the scan.
        least_correlation: what a score must reach.
        reject: where the list of rejected scans is to be saved.
        text: what it holds now.
        look: width and height of a picture in pixels, and planes: where they are cut.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style = environment.from_string(STYLE).render(look, group=GROUP, line=LINE)
    rejected = [row for row in scans if row["reason"]]
    return environment.from_string(TEMPLATE).render(
        look,
        root=root,
        style=style,
        script=SCRIPT,
        group=GROUP,
        kept=[row for row in scans if not row["reason"]],
        seen=[row for row in rejected if row["picture"]],
        unseen=[row for row in rejected if not row["picture"]],
        least=f"{least_correlation:g}",
        reject=reject,
        text=text,
        score=lambda value: "no score" if value is None else f"{value:.3f}",
        **_histogram(scans, least_correlation),
    )


def _histogram(scans: list[dict[str, Any]], least_correlation: float) -> dict[str, Any]:
    """Bars, ticks and the place of the threshold, in pixels."""
    bins: dict[int, list[dict]] = {}
    for row in scans:
        if row["score"] is not None:
            # 1 itself is in the last bin, and 0.58 not in the one below for rounding's sake.
            place = min(math.floor(row["score"] / BIN + 1e-6), round(1 / BIN) - 1)
            bins.setdefault(place, []).append(row)
    low = math.floor(min([least_correlation, *(place * BIN for place in bins)]) * 10) / 10

    def across(score: float) -> float:
        return round((score - low) / (1 - low) * WIDE, 1)

    bars = []
    tallest = max(map(len, bins.values()), default=1)
    for place, rows in sorted(bins.items()):
        parts, y = [], float(HIGH)
        for kind in ("rejected", "kept"):
            count = sum(bool(row["reason"]) == (kind == "rejected") for row in rows)
            # One scan among thousands must still be seen.
            height = max(round(count / tallest * HIGH, 1), 2) if count else 0
            y -= height
            if count:
                parts.append((kind, round(y, 1), height))
        bars.append(
            {
                "x": across(place * BIN),
                "width": max(round(BIN / (1 - low) * WIDE - 1, 1), 1),
                "parts": parts,
                "first": rows[0]["participant_id"],
                "title": f"{place * BIN:.2f} to {(place + 1) * BIN:.2f}: {len(rows)}",
            }
        )
    tenths = range(round(low * 10), 11)
    return {
        "bars": bars,
        "ticks": [(across(tenth / 10), f"{tenth / 10:g}") for tenth in tenths],
        "least_x": across(least_correlation),
        "wide": WIDE,
        "high": HIGH,
    }
