"""The page of the demo: an image, a threshold, and what the model predicts."""

from pathlib import Path

import gradio as gr
from jinja2 import Environment

from mmhatnet.demo.predictions import MOST_BOXES, Predictor
from mmhatnet.errors import ImageError

RESULT = """
{%- macro image(key, p) -%}
<img src="results/{{ key }}/preview.jpg" alt="{{ p.name }}">
{%- endmacro -%}
{%- macro stage(p) -%}
calc(75vh * {{ p.size[1] / p.size[0] }})
{%- endmacro -%}
{%- macro downloads(key, p, query) -%}
<p class="downloads">{% for file in p.files(1) -%}
<a download="{{ file }}" href="results/{{ key }}/{{ file }}{{ query }}">{{ file }}</a>
{%- endfor %}</p>
{%- endmacro -%}
{%- macro bar(share) -%}
<td class="bar"><i style="width: {{ '%.1f' % (100 * share) }}%"></i></td>
{%- endmacro -%}
<div class="result">
{%- if message %}
<p class="failed" role="alert">{{ message }}</p>
{%- elif p is none %}
<p class="nothing">Drop an image to see what the model predicts.</p>
{%- elif p.ranking is defined %}
<table><tbody>
{%- for name, score in p.ranking %}
<tr><td class="name">{{ name }}</td>{{ bar(score) }}<td>{{ '%.1f' % (100 * score) }} %</td></tr>
{%- endfor %}
</tbody></table>
{{ downloads(key, p, '') }}
{%- elif p.legend is defined %}
<div class="stage" style="max-width: {{ stage(p) }}">{{ image(key, p) }}
<img class="overlay" src="results/{{ key }}/overlay.png" alt=""></div>
{{ downloads(key, p, '') }}
<table><tbody>
{%- for color, name, share in p.legend %}
<tr><td class="name"><span style="background: {{ color }}"></span>{{ name }}</td>{{ bar(share) }}
<td>{{ '%.1f' % (100 * share) }} %</td></tr>
{%- endfor %}
</tbody></table>
{%- else %}
<p class="summary"><b>{{ above | length }}</b> of {{ p.boxes | length }} detections have a score
 above {{ '%.2f' % threshold }}
{%- if above | length > most %}; the {{ most }} with the highest scores are shown{% endif %}.</p>
<div class="stage" style="max-width: {{ stage(p) }}">{{ image(key, p) }}
<svg viewBox="0 0 {{ p.canvas[0] }} {{ p.canvas[1] }}" preserveAspectRatio="none">
{%- for b in above[:most] if b.outline %}<path d="{{ b.outline }}" fill="{{ b.color }}"
 stroke="{{ b.color }}"/>{% endfor -%}
</svg>
{%- for b in above[:most] | reverse %}
<div class="box{{ ' high' if b.place[1] < 8 }}{{ ' right' if b.place[0] > 60 }}"
 title="{{ b.name }} {{ '%.2f' % b.score }}" style="left: {{ b.place[0] }}%;
 top: {{ b.place[1] }}%; width: {{ b.place[2] }}%; height: {{ b.place[3] }}%;
 border-color: {{ b.color }}"><b style="background: {{ b.color }}; color:
 {{ '#fff' if b.dark else '#000' }}">{{ b.name }} {{ '%.2f' % b.score }}</b></div>
{%- endfor %}
</div>
{{ downloads(key, p, '?threshold=%s' % threshold) }}
{%- if above %}
<div class="scroll"><table>
<thead><tr><th class="name">class</th><th></th><th>score</th><th class="wide">left, top</th>
<th class="wide">size</th></tr></thead><tbody>
{%- for b in above[:most] %}
<tr><td class="name"><span style="background: {{ b.color }}"></span>{{ b.name }}</td>
{{ bar(b.score) }}<td>{{ '%.2f' % b.score }}</td>
<td class="wide">{{ b.pixels[0] }}, {{ b.pixels[1] }}</td>
<td class="wide">{{ b.pixels[2] }} x {{ b.pixels[3] }}</td></tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}
{%- endif %}
{%- if p is not none and not message %}
<p class="note">{{ p.name }}: {{ p.size[1] }} x {{ p.size[0] }} pixels,
 {{ '%.2f' % p.seconds }} s</p>
{%- endif %}
</div>
"""
CSS = """
footer { display: none !important; }
.html-container { padding: 0 !important; }
.heading h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
.heading p, .result .note, .result .nothing { font-size: .875rem; margin: 0; opacity: .75; }
.result { color: var(--body-text-color); }
.result p { margin: .5rem 0; }
.result > :first-child { margin-top: 0; }
.result .failed { border-left: 4px solid #d33; padding: .5rem .8rem; overflow-wrap: anywhere;
 background: var(--background-fill-secondary); }
.result .nothing { padding: 3rem 1rem; text-align: center;
 border: 1px dashed var(--border-color-primary); border-radius: .5rem; }
.stage { position: relative; overflow: hidden; line-height: 0; border-radius: .3rem; }
.stage img { width: 100%; height: auto; margin: 0; }
.stage .overlay, .stage svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.stage .overlay { opacity: .6; image-rendering: pixelated; }
.stage path { fill-opacity: .4; fill-rule: evenodd; stroke-width: 1.5;
 vector-effect: non-scaling-stroke; }
.stage .box { position: absolute; border: 2px solid; box-sizing: border-box; border-radius: 2px; }
.stage .box b { position: absolute; left: -2px; bottom: 100%; padding: 1px 4px; white-space: nowrap;
 font: 600 12px/1.3 system-ui, sans-serif; border-radius: 2px; }
.stage .box.high b { bottom: auto; top: 0; }
.stage .box.right b { left: auto; right: -2px; }
.stage .box:hover { z-index: 1; outline: 2px solid #fff; }
.result .downloads a { display: inline-block; margin: .2rem .5rem .2rem 0; padding: .45rem .8rem;
 border: 1px solid var(--border-color-primary); border-radius: .4rem; text-decoration: none;
 color: var(--body-text-color); background: var(--button-secondary-background-fill); }
.result .downloads a::before { content: "\\2193\\00a0"; }
.result .downloads a:hover { border-color: var(--color-accent); }
.result .scroll { overflow: auto; max-height: 24rem; }
.result table { width: 100%; border-collapse: collapse; font-size: .875rem; margin: .5rem 0; }
.result table, .result thead, .result tr { border: 0; }
.result th, .result td { padding: .3rem .4rem; text-align: right; white-space: nowrap;
 border: 0; border-bottom: 1px solid var(--border-color-primary);
 font-variant-numeric: tabular-nums; }
.result th { position: sticky; top: 0; background: var(--background-fill-primary); }
.result .name { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
.result .name span { display: inline-block; width: .8em; height: .8em; margin-right: .5em;
 border-radius: 2px; }
.result .bar { width: 30%; min-width: 4rem; }
@media (max-width: 30rem) { .result .wide { display: none; } }
.result .bar i { display: block; height: .6rem; border-radius: 2px; min-width: 1px;
 background: var(--color-accent); }
"""
FONTS = ('system-ui', 'sans-serif'), ('ui-monospace', 'monospace')


def take_uploads_alone(image: gr.Image) -> None:
    """Makes a component give the function the file that was uploaded, and its name.

    Gradio would decode and convert it, read any file of this machine whose path it is sent, and
    download what an address names. A subclass would be a custom component to it, for which it
    writes files. The component must not be updated, which would make a new one.
    """
    take, folder = image.async_move_resource_to_block_cache, Path(image.GRADIO_CACHE).resolve()

    async def take_upload(file: str | Path | None) -> str | None:
        if file is not None and not Path(file).resolve().is_relative_to(folder):
            raise gr.Error('This is no upload.')
        return await take(file)

    def file_and_name(payload: object) -> tuple[str, str] | None:
        if payload is None or not payload.path:
            return None
        return payload.path, Path(payload.orig_name or payload.path).name

    image.async_move_resource_to_block_cache = take_upload
    image.preprocess = file_and_name


def theme() -> gr.themes.Base:
    """Returns Gradio's theme, with the fonts of the reader's machine."""
    text, code = FONTS
    return gr.themes.Default(font=text, font_mono=code)


def build_page(
    predictor: Predictor, title: str, subtitle: str, score_thr: float, examples: list[str]
) -> gr.Blocks:
    """Builds the page.

    Args:
        predictor (Predictor): Predicts the images.
        title (str): The title.
        subtitle (str): What the model is.
        score_thr (float): The minimum score of boxes at first.
        examples (list[str]): Images to choose from.

    Returns:
        gr.Blocks: The page.
    """
    environment = Environment(autoescape=True)
    heading = environment.from_string(
        '<div class="heading"><h1>{{ title }}</h1><p>{{ subtitle }}</p></div>'
    )
    template = environment.from_string(RESULT)

    def show(key: str | None, threshold: float, message: str = '') -> str:
        prediction = predictor[key]
        if key and prediction is None:
            message = 'The prediction is no longer kept: drop the image again.'
        above = prediction.above(threshold) if hasattr(prediction, 'above') else []
        return template.render(
            **dict(key=key, p=prediction, threshold=threshold, message=message),
            **dict(above=above, most=MOST_BOXES),
        )

    def predict(image: tuple[str, str] | None, threshold: float) -> tuple[str | None, str]:
        if image is None:
            return None, show(None, threshold)
        try:
            key = predictor.predict(*image)
        except ImageError as error:
            return None, show(None, threshold, f'{error}.')
        return key, show(key, threshold)

    is_detector = predictor.scope == 'mmdet'
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        key = gr.State()
        gr.HTML(heading.render(title=title, subtitle=subtitle), padding=False)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(
                    label='Image', type='filepath', sources=['upload', 'clipboard'], height=280
                )
                take_uploads_alone(image)
                threshold = gr.Slider(
                    *(0, 1, score_thr),
                    step=0.01,
                    label='Score threshold',
                    visible=is_detector,
                )
                if examples:
                    samples = gr.Dataset(
                        components=['image'],
                        samples=[[path] for path in examples],
                        type='index',
                        label='Examples',
                    )
                    samples.click(examples.__getitem__, samples, image, show_progress='hidden')
            with gr.Column(scale=2, min_width=300):
                result = gr.HTML(show(None, score_thr), padding=False)
        # While one event is handled, the last one that follows waits.
        image.change(
            predict,
            [image, threshold],
            [key, result],
            api_name='predict',
            concurrency_id='page',
            concurrency_limit=1,
            trigger_mode='always_last',
        )
        threshold.change(
            show,
            [key, threshold],
            result,
            api_name='threshold',
            concurrency_id='page',
            trigger_mode='always_last',
            show_progress='hidden',
        )
    return page
