"""The picture of the results: fidelity against bytes and against time, for both themes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from html import escape

from benchmarks.bits.fidelity import DECIDES
from benchmarks.bits.results import Results
from benchmarks.bits.row import Row
from benchmarks.bits.svg_axes import Axis, Frame

TITLES = {
    "minilm": "MiniLM, encoder",
    "smollm2": "SmolLM2, decoder",
    "vit": "ViT, Fashion-MNIST",
    "crnn": "Digit reader, LSTM",
    "tagger": "Tagger of words",
    "albert": "ALBERT, reactions",
    "antiberty": "AntiBERTy, masked",
}
WIDTH, HEIGHT, TOP = 400, 230, 64  # of a panel; of the legend above them
MARGIN = (58, 14, 34, 42)  # left, right, top, bottom

STYLE = """
text { font: 12px system-ui, sans-serif; fill: var(--ink) }
.title { font-weight: 600 } .small { font-size: 11px; fill: var(--soft) }
.grid { stroke: var(--grid); stroke-width: 1 }
.line { fill: none; stroke-width: 2 }
svg { --ink: #1f2328; --soft: #59636e; --grid: #d8dee4; --ours: #0550ae; --low: #8250df;
  --int8: #1a7f37; --rtn: #9a6700; --hqq: #bc4c00; --gptq: #cf222e; --fp16: #59636e }
@media (prefers-color-scheme: dark) {
svg { --ink: #f0f6fc; --soft: #9198a1; --grid: #3d444d; --ours: #58a6ff; --low: #bc8cff;
  --int8: #3fb950; --rtn: #d29922; --hqq: #f0883e; --gptq: #ff7b72; --fp16: #9198a1 } }
"""


@dataclass(frozen=True)
class Series:
    """Rows that share a mark. Those with a line show only files that no other of them beats."""

    label: str
    methods: tuple[str, ...]  # patterns
    colour: str
    mark: str
    line: str = ""  # "" for none, "solid", "dashed"


SERIES = (
    Series("fp16", ("fp16",), "fp16", "cross"),
    Series("int8, dynamic or static", ("dynamic*", "static*"), "int8", "square"),
    Series("rounding to nearest, k-quant", ("rtn*", "kquant*"), "rtn", "triangle"),
    Series("HQQ", ("hqq*",), "hqq", "diamond"),
    Series("GPTQ (mended), AWQ", ("gptq*", "inc*"), "gptq", "ring"),
    Series("low rank alone", ("low-rank*",), "low", "dot", "dashed"),
    Series("lrcompress: rank and bits", ("ours*",), "ours", "dot", "solid"),
)


def draw(results: Results) -> str:
    """Return the SVG, two panels a row; networks without rows of ours are left out."""
    ours = {
        name: [r for r in results.of(name) if r.group == "ours" and r.fidelity] for name in TITLES
    }
    panels = [(name, "size") for name in TITLES if ours[name]]
    panels += [(name, "time") for name in TITLES if any(_time(row) for row in ours[name])]
    width, height = 2 * WIDTH, TOP + HEIGHT * ((len(panels) + 1) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        'aria-label="Fidelity of compressed ONNX files against their size and their latency">',
        f"<style>{STYLE}</style>",
        *_legend(),
    ]
    for number, (name, against) in enumerate(panels):
        corner = WIDTH * (number % 2), TOP + HEIGHT * (number // 2)
        cost = _share(results, name) if against == "size" else _time
        parts += _panel(results, name, cost, against, corner)
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> Iterable[str]:
    for number, series in enumerate(SERIES):
        x, y = 20 + 265 * (number // 3), 16 + 18 * (number % 3)
        if series.line:
            yield _polyline(series, [(x - 11, y), (x + 11, y)])
        yield _mark(series, x, y, "")
        yield f'<text x="{x + 16}" y="{y + 4}">{escape(series.label)}</text>'


def _panel(
    results: Results,
    name: str,
    cost: Callable[[Row], float | None],
    against: str,
    corner: tuple[int, int],
) -> Iterable[str]:
    """One network's distances from the dense graph (logarithmic, the best on top) over a cost."""
    note = results.networks[name]
    measure, _ = DECIDES[note.kind]
    cosine = measure == "cosine"

    def distance(row: Row) -> float:
        value = row.fidelity[note.evaluations[0]][measure]
        return max(1 - value if cosine else value, 1e-6)

    rows = [row for row in results.of(name) if row.fidelity and cost(row) is not None]
    size = against == "size"
    if not rows:
        return
    down = Axis.logarithmic([distance(row) for row in rows], least=1e-5, most=1.0)
    costs = [cost(row) or 0.0 for row in rows]
    across = Axis.logarithmic(costs, least=0.04, most=1.05) if size else Axis.linear(costs)
    left, right, above, below = MARGIN
    frame = Frame(
        (corner[0] + left, corner[0] + WIDTH - right),
        (corner[1] + above, corner[1] + HEIGHT - below),
        across,
        down,
    )
    yield f'<text class="title" x="{corner[0] + left}" y="{corner[1] + 18}">{TITLES[name]}</text>'
    yield from frame.grid(
        lambda value: f"{value:.0%}",
        (lambda value: f"{1 - value:.5g}") if cosine else (lambda value: f"{value:g}"),
    )
    what = "size of the file" if size else "time, 1 example, 1 thread"
    sided = "cosine to dense" if cosine else "KL from dense, nats"
    yield from frame.captions(f"{what}, share of dense fp32", sided)
    for series in SERIES:
        chosen = [r for r in rows if any(fnmatch(r.method, p) for p in series.methods)]
        places = [(cost(row) or 0.0, distance(row), row) for row in chosen]
        if series.line:
            places = _front(places)
            yield _polyline(series, [frame.at(a, b) for a, b, _ in places])
        for a, b, row in places:
            shown = f"{row.method} {row.budget}: {a:.1%}, {measure} {1 - b if cosine else b:.4g}"
            yield _mark(series, *frame.at(a, b), shown)


def _polyline(series: Series, places: Iterable[tuple[float, float]]) -> str:
    dash = ' stroke-dasharray="5 4"' if series.line == "dashed" else ""
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    colour = f"stroke:var(--{series.colour})"
    return f'<polyline class="line" style="{colour}"{dash} points="{points}"/>'


def _front(places: Sequence[tuple[float, float, Row]]) -> list[tuple[float, float, Row]]:
    """Those that are nearer to the dense graph than every cheaper one, by cost."""
    kept: list[tuple[float, float, Row]] = []
    for place in sorted(places, key=lambda place: place[:2]):
        if not kept or place[1] < kept[-1][1]:
            kept.append(place)
    return kept


def _share(results: Results, name: str) -> Callable[[Row], float | None]:
    dense = results.networks[name].bytes
    return lambda row: None if row.bytes is None else row.bytes / dense


def _time(row: Row) -> float | None:
    found = row.timing(batch=1, threads=1)
    return None if found is None else found.ratio


def _mark(series: Series, x: float, y: float, shown: str) -> str:
    filled = f'style="fill:var(--{series.colour})"'
    outline = f'style="fill:none;stroke:var(--{series.colour});stroke-width:2"'
    moved = f'transform="translate({x:.1f} {y:.1f})"'
    shapes = {
        "dot": f'<circle r="4" {filled} {moved}>',
        "ring": f'<circle r="3.5" {outline} {moved}>',
        "square": f'<path d="M-3.5-3.5h7v7h-7z" {outline} {moved}>',
        "triangle": f'<path d="M0-4.5l4.5 8h-9z" {outline} {moved}>',
        "diamond": f'<path d="M0-4.8l4.8 4.8-4.8 4.8-4.8-4.8z" {outline} {moved}>',
        "cross": f'<path d="M-4-4l8 8M-4 4l8-8" {outline} {moved}>',
    }
    element = shapes[series.mark]
    tag = element[1 : element.index(" ")]
    title = f"<title>{escape(shown)}</title>" if shown else ""
    return f"{element}{title}</{tag}>"
