"""The rate and the cost of one TCP stream, as bars in an SVG that is legible on light and dark."""

from xml.sax.saxutils import escape

from lib.report import Results
from lib.tunnels import NAIVE, OURS

WIRES = ("thru", "gro", "nogro")
# Who has a bar, in this order, with its colour on light and on dark.
BARS = {
    OURS: ("#0969da", "#4493f8"),
    NAIVE: ("#8fb8ea", "#2f5f9e"),
    "wireguard-go": ("#bf5a00", "#f0883e"),
    "boringtun": ("#8250df", "#ab7df8"),
    "strongSwan to strongSwan": ("#57606a", "#9198a1"),
}
PANELS = (
    ("TCP, one stream up, Gbit/s (more is better)", "rate", ("rate",)),
    ("Processor time of both ends, seconds per GB (less is better)", "cost", ("cpu-client", "cpu-other")),
)
WIDTH, HEIGHT, LEFT, TOP, GAP = 760, 190, 44, 76, 84
BAR, SPACE = 34, 10


def style() -> str:
    def rules(at: int, ground: str, ink: str, line: str) -> str:
        bars = " ".join(f".b{number} {{ fill: {colours[at]} }}" for number, colours in enumerate(BARS.values()))
        strokes = f".line {{ stroke: {line} }} .range {{ stroke: {ink} }}"
        return f".ground {{ fill: {ground} }} text {{ fill: {ink} }} {strokes} {bars}"

    return (
        "text { font: 12px system-ui, 'DejaVu Sans', sans-serif } .title { font-size: 15px; font-weight: 600 } "
        ".head { font-weight: 600 } .small { font-size: 11px } .middle { text-anchor: middle } .end { text-anchor: end } "
        + rules(0, "#ffffff", "#1f2328", "#d0d7de")
        + f" @media (prefers-color-scheme: dark) {{ {rules(1, '#0d1117', '#e6edf3', '#30363d')} }}"
    )


def step(most: float) -> float:
    """Between two lines of the scale, of which there are at most six."""
    size = 0.01
    while True:
        for factor in (1, 2, 5):
            if most / (size * factor) <= 6:
                return size * factor
        size *= 10


def panel(results: Results, top: int, title: str, kind: str, figures: tuple[str, ...]) -> list[str]:
    found = {
        (wire, name): known for wire in WIRES for name in BARS if (known := results.known(wire, name, "tcp-up", figures))
    }
    most = max((max(known) for known in found.values()), default=1.0)
    scale = (HEIGHT - 24) / most
    bottom = top + HEIGHT
    parts = [f'<text class="head" x="{LEFT}" y="{top - 10}">{escape(title)}</text>']
    each = step(most)
    for number in range(int(most / each) + 1):
        y = bottom - number * each * scale
        parts.append(f'<line class="line" x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="small end" x="{LEFT - 6}" y="{y + 4:.1f}">{number * each:g}</text>')
    x = LEFT + 14.0
    for wire in WIRES:
        shown = [(number, name) for number, name in enumerate(BARS) if (wire, name) in found]
        begin = x
        for number, name in shown:
            known = found[wire, name]
            middle = results.median(wire, name, "tcp-up", figures)
            height = middle * scale
            low, high = (bottom - value * scale for value in (min(known), max(known)))
            at = x + BAR / 2
            parts.append(f'<rect class="b{number}" x="{x:.1f}" y="{bottom - height:.1f}" width="{BAR}" height="{height:.1f}"/>')
            parts.append(f'<line class="range" x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
            ratio = results.ratio(wire, OURS, name, "tcp-up", figures)
            label = f"{middle:.1f}" if name == OURS else ""
            if name != OURS and ratio:
                label = f"{ratio if kind == 'rate' else 1 / ratio:.1f}×"
            parts.append(f'<text class="small middle" x="{at:.1f}" y="{high - 5:.1f}">{label}</text>')
            x += BAR + SPACE
        if shown:
            words = wire
            bare = results.median(wire, "no tunnel", "tcp-up", figures)
            if bare is not None:
                words += f" (no tunnel: {bare:.1f})"
            parts.append(f'<text class="middle" x="{(begin + x - SPACE) / 2:.1f}" y="{bottom + 18}">{escape(words)}</text>')
            x += 2 * BAR - SPACE
    return parts


def svg(results: Results, machine: dict, rounds: int) -> str:
    below = TOP + 58 + len(PANELS) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {below}" width="{WIDTH}" height="{below}" role="img">',
        "<title>Peregrine's throughput beside others'</title>",
        f"<style>{style()}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{below}"/>',
        f'<text class="title" x="{LEFT}" y="28">Through the tunnel, all on one machine</text>',
    ]
    x = LEFT
    shown = [name for name in BARS if any(results.known(wire, name, "tcp-up", ("rate",)) for wire in WIRES)]
    for number, name in enumerate(BARS):
        if name in shown:
            parts.append(f'<rect class="b{number}" x="{x}" y="42" width="10" height="10"/>')
            parts.append(f'<text class="small" x="{x + 14}" y="51">{escape(name)}</text>')
            x += 30 + round(6.1 * len(name))
    top = TOP + 30
    for title, kind, figures in PANELS:
        parts += panel(results, top, title, kind, figures)
        top += HEIGHT + GAP
    count = f"{rounds} round{'s' if rounds > 1 else ''}"
    notes = (
        f"Medians of {count}, lines from the least to the most; above them how many times better Peregrine was in that round.",
        "Large datagrams: thru passes them whole, gro cuts them and puts them together again, nogro only cuts them.",
        f"{machine['processor']}, {machine['cores']} cores, {machine['kernel']}, {machine['date']}.",
    )
    for line, words in enumerate(notes):
        parts.append(f'<text class="small" x="{LEFT}" y="{below - 44 + 16 * line}">{escape(words)}</text>')
    return "\n".join([*parts, "</svg>", ""])
