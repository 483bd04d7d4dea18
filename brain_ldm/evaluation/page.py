"""index.html: the numbers of metrics.json in words, beside the figures. Needs no network."""

from typing import Any

import jinja2

from brain_ldm.evaluation.quantities import QUANTITIES, interval, number, spread

STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1f24; --paper: #ffffff; --quiet: #5d666f; --line: #dfe3e8; --card: #f6f7f9;
  --accent: #1f6feb; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e8ebee; --paper: #121417; --quiet: #9aa3ad; --line: #2b3036; --card: #1a1d21;
  --accent: #6ea8ff; }
  img.plot { filter: invert(.91) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 3rem 1.5rem 5rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans",
  sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.35rem; margin: 3.2rem 0 .3rem; letter-spacing: -.01em; }
h3 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
p { max-width: 46rem; margin: .4rem 0 .9rem; }
.lead, .caption, .quiet { color: var(--quiet); }
.caption { font-size: .92rem; }
code { font: .86em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: 1rem;
  margin: 1.2rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.2rem; }
.card .name { font-size: .92rem; color: var(--quiet); }
.card .value { font-size: 2.3rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.card .value small { font-size: .95rem; font-weight: 400; letter-spacing: 0; color: var(--quiet); }
.card .beside { font-size: .9rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; margin: .8rem 0 1.2rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .42rem .7rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.small { width: auto; min-width: 26rem; }
th.wrap, td.wrap { white-space: normal; text-align: left; }
a { color: var(--accent); }
td.ours { font-weight: 600; }
figure { margin: 1.2rem 0 2rem; }
img { display: block; width: 100%; height: auto; border-radius: 8px; }
figcaption { margin-top: .6rem; color: var(--quiet); font-size: .92rem; max-width: 52rem; }
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Synthetic brains against real ones</title>
<style>{{ style|safe }}</style>
</head>
<body>
<h1>Synthetic brains against real ones</h1>
<p class="lead">{{ m.synthetic|join(", ") }}, held against {{ m.real.n }} {{ m.settings.split }}
rows of <code>{{ m.real.folder }}</code>, on a grid of {{ m.grid.shape|join("×") }} voxels of
{{ "%g"|format(m.grid.resolution_mm) }} mm.</p>

{% for name, cohort in m.synthetic.items() %}
<h2>{{ name }}: was the request honoured?</h2>
<p>Each brain was asked for with an age and volumes; networks then measured it without knowing
them. <em>r</em> near 1 and a slope near 1 mean that the request decides what appears. Compare with
the ceiling, what the same networks reach on real brains: a perfect model would come out about
there.</p>
<div class="cards">
{% for covariate, found in cohort.agreement.items() %}
<div class="card">
<div class="name">{{ quantities[covariate].title }}, r</div>
{% if found.r is none %}
<div class="value">–</div>
<div class="beside">{{ found.note }}</div>
{% else %}
<div class="value">{{ number(found.r) }}</div>
<div class="beside">95 %: {{ number(found.r_low) }} to {{ number(found.r_high) }}<br>
ceiling {{ number(found.ceiling.r) }}<br>
chance {{ number(found.floor.mean_abs_r, 2) }} · n {{ found.n }}</div>
{% endif %}
</div>
{% endfor %}
<div class="card">
<div class="name">Diversity, MS-SSIM</div>
<div class="value">{{ number(cohort.ms_ssim.mean) }}</div>
<div class="beside">real {{ number(m.real.ms_ssim.mean) }}<br>lower is more diverse<br>
{{ cohort.ms_ssim.n }} pairs</div>
</div>
<div class="card">
<div class="name">Autoencoder, PSNR</div>
<div class="value">{{ number(m.real.reconstruction.psnr_db.mean, 1) }} <small>dB</small></div>
<div class="beside">SSIM {{ number(m.real.reconstruction.ssim.mean) }}<br>bounds the sharpness<br>
n {{ m.real.reconstruction.psnr_db.n }}</div>
</div>
</div>
<div class="scroll"><table>
<tr><th>Covariate</th><th></th><th>r [95 %]</th><th>MAE</th><th>slope</th><th>n</th>
<th>left out</th><th>chance |r|, mean [95 %]</th></tr>
{% for covariate, found in cohort.agreement.items() %}
{% for title, row in (("synthetic", found), ("ceiling", found.ceiling)) %}
<tr><td>{{ quantities[covariate].title if loop.first }}</td><td>{{ title }}</td>
<td{{ " class=ours" if loop.first }}>{{ interval(row) }}</td>
<td>{{ quantities[covariate].text(row.mae) }}</td><td>{{ number(row.slope, 2) }}</td>
<td>{{ row.n }}</td><td>{{ row.left_out }}</td>
<td>{% if row.floor %}{{ number(row.floor.mean_abs_r, 2) }}
[{{ number(row.floor.abs_r_low, 2) }}, {{ number(row.floor.abs_r_high, 2) }}]{% else %}–{% endif %}
</td></tr>
{% if row.note %}
<tr><td></td><td class="wrap" colspan="7">{{ title }}: {{ row.note }}</td></tr>
{% endif %}
{% endfor %}
{% endfor %}
</table></div>
<p class="caption">Brackets hold 95 % bootstrap intervals over brains ({{ m.settings.bootstrap }}
resamples): with this n, differences smaller than their width are not established. Chance is |r|
after pairing requests and brains at random ({{ m.settings.permutations }} times). Rows without a
request for a covariate are left out of its line.</p>
<figure><img class="plot" src="{{ cohort.scatter|urlencode }}"
alt="Requested against measured values">
<figcaption>Look for points along the dashed line, where measured equals requested. Above the
synthetic brains, below the real ones on the same axes. A cloud that is flatter than the line but
just as flat below is the measuring network's doing.</figcaption></figure>

<h3>What they look like</h3>
<figure><img src="{{ cohort.montage|urlencode }}"
alt="Real, reconstructed and synthetic brains in three planes">
<figcaption>{% if cohort.montage_matched %}Each synthetic brain was asked for with the covariates
of the real one in its column: expect the same age and ventricles, not the same person.{% else %}No
column source_id of the synthetic cohort names these real participants, so the columns do not
match.{% endif %} Look for sharp grey-white borders and folded cortex in the synthetic row, as sharp
as in the reconstructed one: what is lost there already is the autoencoder's loss. Coronal,
sagittal and axial slices cut near MNI 2, −14, 20 mm; the participant's left is on the left; grey
from 0 (black) to 1 (white) in all of them; enlarged bilinearly, so no detail is added.</figcaption>
</figure>
{% endfor %}

{% if m.sweeps %}
<h2>One covariate at a time</h2>
<p>Within a sweep only the named covariate changes; the starting noise and all other covariates stay
as they are. Look for one person changing in the way that was asked for, and in no other.</p>
{% for name, sweep in m.sweeps.items() %}
<h3>{{ name }}: {{ quantities[sweep.covariate].title|lower if sweep.covariate in quantities
else sweep.covariate }} varied</h3>
<figure><img src="{{ sweep.figure|urlencode }}" alt="Brains of a sweep">
<figcaption>Coronal above axial slices of one seed. Below: measured against the value varied, a line
a seed, on axes that cover what was measured on the real brains; dashed is what was requested.
{% if sweep.agreement and sweep.agreement.r is not none %}Over {{ sweep.agreement.n }} brains r is
{{ interval(sweep.agreement) }} and the slope {{ number(sweep.agreement.slope, 2) }}.{% endif %}
</figcaption></figure>
{% endfor %}
{% endif %}

<h2>Do the brains differ from one another?</h2>
<p>MS-SSIM between random pairs of different brains of one cohort: lower means more diverse.
Synthetic brains should lie near the real ones; far above them they have collapsed to one brain or
are blurred, far below they are noise.</p>
<div class="scroll"><table class="small">
<tr><th>Brains</th><th>MS-SSIM, mean ± sd</th><th>pairs</th></tr>
{% for title, found in diversity.items() %}
<tr><td>{{ title }}</td><td{{ " class=ours" if title in m.synthetic }}>{{ spread(found) }}</td>
<td>{{ found.n }}</td></tr>
{% endfor %}
</table></div>
<p class="caption">Gaussian window of {{ m.real.ms_ssim.window }} voxels,
{{ m.real.ms_ssim.scales }} {{ "scale" if m.real.ms_ssim.scales == 1 else "scales" }}
(as many as this grid allows, at most 5), the empty background included:
compare with values of the same window, scales and grid alone.</p>

<h2>What does the autoencoder lose?</h2>
<p>Real brains encoded and decoded again.
{% if own %}This is the autoencoder that drew {{ own|join(", ") }}: what it blurs here, no brain
there can show.{% else %}None of the synthetic cohorts says that this autoencoder drew it.
{% endif %}</p>
<div class="scroll"><table class="small">
<tr><th>Measure</th><th>mean ± sd</th><th>n</th></tr>
<tr><td>PSNR</td><td>{{ spread(m.real.reconstruction.psnr_db, 1) }} dB</td>
<td>{{ m.real.reconstruction.psnr_db.n }}</td></tr>
<tr><td>SSIM (window {{ m.real.reconstruction.ssim.window }})</td>
<td>{{ spread(m.real.reconstruction.ssim) }}</td><td>{{ m.real.reconstruction.ssim.n }}</td></tr>
</table></div>

<h2>What measured this</h2>
<p>The ceiling is honest only where these networks never saw the {{ m.settings.split }} rows, and
the result only where they never saw a synthetic brain.</p>
<div class="scroll"><table>
<tr><th>Network</th><th class="wrap">folder</th><th>weights (sha256)</th>
<th class="wrap">trained on</th></tr>
{% for name, model in m.models.items() %}
<tr><td>{{ name|replace("_", " ") }}</td><td class="wrap"><code>{{ model.folder }}</code></td>
<td><code>{{ model.sha256[:12] }}</code></td>
<td class="wrap">{{ training(model.trained_on) }}</td></tr>
{% endfor %}
</table></div>
<div class="scroll"><table>
<tr><th>Cohort</th><th class="wrap">folder</th><th>content (sha256)</th><th>rows</th>
<th class="wrap">made by</th></tr>
{% for title, cohort in cohorts.items() %}
<tr><td>{{ title }}</td><td class="wrap"><code>{{ cohort.folder }}</code></td>
<td><code>{{ cohort.sha256[:12] }}</code></td><td>{{ cohort.n }}</td>
<td class="wrap">{{ said(cohort.generated_by[0]) if cohort.generated_by else "not recorded" }}</td>
</tr>
{% endfor %}
</table></div>
<p class="caption">All numbers are in <a href="metrics.json">metrics.json</a>, each brain's in
<a href="measurements.tsv">measurements.tsv</a>. Seed {{ m.settings.seed }}.</p>
</body>
</html>
"""


def page(metrics: dict[str, Any]) -> str:
    """Return index.html for what metrics.json holds; links are relative to its folder."""
    real = metrics["real"]
    diversity = {"real": real["ms_ssim"], "real, reconstructed": real["ms_ssim_reconstructed"]} | {
        name: cohort["ms_ssim"] for name, cohort in metrics["synthetic"].items()
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE).render(
        m=metrics,
        style=STYLE,
        quantities=QUANTITIES,
        diversity=diversity,
        cohorts={"real": real} | metrics["synthetic"] | metrics["sweeps"],
        interval=interval,
        number=number,
        spread=spread,
        said=_said,
        own=[name for name, cohort in metrics["synthetic"].items() if _drawn_by(cohort, metrics)],
        training=lambda facts: _training(facts, metrics),
    )


def _drawn_by(cohort: dict[str, Any], metrics: dict[str, Any]) -> bool:
    """Whether the cohort says that its images come from the autoencoder judged here."""
    made = (cohort["generated_by"] or [{}])[0].get("AutoencoderHash")
    return made == metrics["models"]["autoencoder"]["sha256"]


def _training(facts: dict[str, Any], metrics: dict[str, Any]) -> str:
    """What a model's folder says of its training, and what that means for the rows compared."""
    if not facts:
        return "not recorded"
    split = metrics["settings"]["split"]
    if facts.get("cohort_hash") != metrics["real"]["sha256"]:
        meaning = "another cohort than the real one"
    elif split == "train":
        meaning = "these very rows, which flatters its measurements"
    else:
        meaning = f"the training split of the real cohort, so none of its {split} rows"
    return f"{meaning} ({_said(facts)})"


def _said(facts: dict[str, Any]) -> str:
    """Facts in one line, hashes cut short."""
    return ", ".join(
        f"{name}: {value[:12] if isinstance(value, str) and len(value) == 64 else value}"
        for name, value in facts.items()
    )
