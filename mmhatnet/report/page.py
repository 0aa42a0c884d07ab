"""The report as an HTML page, which needs no other file and no network."""

import base64
from collections.abc import Sequence

from jinja2 import Environment

from mmhatnet.report.parts import Section, printable, readable

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: #222; background: #f6f7f9;
 font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .2rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; border-bottom: 2px solid #3182bd; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
section > h3 { margin-top: 1.5rem; }
p { margin: .3rem 0; }
.note, nav, figcaption { color: #555; font-size: .875rem; }
nav a { margin-right: 1em; display: inline-block; padding: .3rem 0; }
.grid { display: grid; gap: .8rem; margin: .8rem 0;
 grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.card { background: #fff; border: 1px solid #dde; border-radius: .5rem; padding: .8rem;
 margin: 0; min-width: 0; }
.parts { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0; align-items: flex-start; }
.parts > .card { max-width: 100%; }
.parts > .chart { flex: 1 1 20rem; }
@media (min-width: 68rem) { .parts > .chart { max-width: calc((100% - 1.6rem) / 3); } }
.parts .note { width: 0; min-width: 100%; }
.gallery { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.gallery.single { grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
.card img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.figures { display: flex; flex-wrap: wrap; gap: .8rem; }
.figures div { background: #fff; border: 1px solid #dde; border-radius: .5rem;
 padding: .4rem .8rem; font-size: .875rem; color: #555; }
.figures b { display: block; font-size: 1.35rem; color: #222; }
.scroll { overflow: auto; max-height: 32rem; }
table { border-collapse: collapse; font-size: .875rem; min-width: 14rem; }
th, td { text-align: right; overflow-wrap: normal; white-space: nowrap;
 padding: .25rem .5rem; border-bottom: 1px solid #e4e6ea; }
th.text, td.text { text-align: left; }
td.text { min-width: 5rem; overflow-wrap: anywhere; white-space: normal; }
th { max-width: 8rem; white-space: normal; }
th { background: #fff; position: sticky; top: 0; vertical-align: bottom; }
.views { display: grid; gap: .4rem; grid-template-columns: 1fr 1fr; }
.views figure { margin: 0; }
.views img { width: 100%; }
.single .views { grid-template-columns: 1fr; }
@media (max-width: 30rem) { .views { grid-template-columns: 1fr; } }
.legend span { margin-right: .8em; display: inline-block; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .3em; }
details { margin: .8rem 0; }
pre { background: #fff; border: 1px solid #dde; padding: .8rem; overflow: auto;
 font-size: .75rem; max-height: 40rem; overflow-wrap: normal; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="note">{{ date }}</p>
<nav>{% for section in sections %}<a href="#s{{ loop.index }}">{{ section.title }}</a>{% endfor %}
</nav>
{%- for section in sections %}
<section id="s{{ loop.index }}">
<h2>{{ section.title }}</h2>
{%- for note in section.notes %}
<p>{{ note }}</p>
{%- endfor %}
{%- if section.figures %}
<div class="figures">
{%- for name, value in section.figures %}<div><b>{{ value }}</b>{{ name }}</div>{% endfor %}
</div>
{%- endif %}
<div class="parts">
{%- for chart in section.charts %}
<figure class="card chart"><h3>{{ chart.title }}</h3>
<img alt="{{ chart.title }}" src="data:image/svg+xml;base64,{{ chart.svg | base64 }}">
<figcaption>{{ chart.note }}</figcaption></figure>
{%- endfor %}
{%- for table in section.tables if table.rows %}
<div class="card"><h3>{{ table.title }}</h3>
<div class="scroll"><table>
{%- if table.columns %}
<tr>{% for name in table.columns %}<th{% if loop.index <= table.texts %} class="text"{% endif %}>
{{- name }}</th>{% endfor %}</tr>
{%- endif %}
{%- for row in table.rows %}
<tr>{% for cell in row %}<td{% if loop.index <= table.texts %} class="text"{% endif %}>
{{- cell | readable }}</td>{% endfor %}</tr>
{%- endfor %}
</table></div>
<p class="note">{{ table.note }}</p></div>
{%- endfor %}
</div>
{%- for gallery in section.galleries if gallery.examples %}
<h3>{{ gallery.title }}</h3>
<p class="note">{{ gallery.note }}</p>
<div class="grid gallery{% if gallery.examples[0].views | length == 1 %} single{% endif %}">
{%- for example in gallery.examples %}
<div class="card">
<div class="views">
{%- for name, jpeg in example.views %}
<figure><img alt="{{ name }}" src="data:image/jpeg;base64,{{ jpeg | base64 }}">
{%- if example.views | length > 1 %}<figcaption>{{ name }}</figcaption>{% endif %}</figure>
{%- else %}<p class="note">The image can no longer be read.</p>
{%- endfor %}
</div>
<p>{{ example.note }}</p>
<p class="note legend">{% for color, name in example.legend %}<span><i
 style="background:{{ color }}"></i>{{ name }}</span>{% endfor %}</p>
<p class="note">{{ example.name }}</p>
</div>
{%- endfor %}
</div>
{%- endfor %}
</section>
{%- endfor %}
<details><summary>The config</summary><pre>{{ config }}</pre></details>
</body>
</html>
"""


def render(title: str, date: str, sections: Sequence[Section], config: str) -> str:
    """Renders a report. All texts are escaped, also those that come from data.

    Args:
        title (str): The title.
        date (str): The date.
        sections (Sequence[Section]): The sections.
        config (str): The text of the config.

    Returns:
        str: The HTML page.
    """
    environment = Environment(autoescape=True, finalize=_without_controls)
    environment.filters.update(
        base64=lambda content: base64.b64encode(content).decode(), readable=readable
    )
    return environment.from_string(TEMPLATE).render(
        title=title, date=date, sections=sections, config=config
    )


def _without_controls(value: object) -> object:
    return printable(value) if isinstance(value, str) else value
