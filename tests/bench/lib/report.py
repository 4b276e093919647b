"""What was measured, as a table, as JSON, and beside what Peregrine aims at.

Figures are results[wire][round][tunnel][load][figure]; what failed or was disturbed lacks."""

import datetime
import json
import os
import pathlib
import re
import shutil
import statistics

from lib.places import run
from lib.tunnels import OURS, versions

# What the table shows, in blocks: the words, the load, the figure (several are added), and how many digits.
BLOCKS = {
    "TCP, Gbit/s": (
        ("1 stream up", "tcp-up", ("rate",), 2),
        ("1 stream down", "tcp-down", ("rate",), 2),
        ("4 streams up", "tcp4-up", ("rate",), 2),
        ("4 streams down", "tcp4-down", ("rate",), 2),
    ),
    "TCP, 1 stream, CPU-s/GB": (
        ("up, both ends", "tcp-up", ("cpu-client", "cpu-other"), 2),
        ("down, both ends", "tcp-down", ("cpu-client", "cpu-other"), 2),
        ("up, client", "tcp-up", ("cpu-client",), 2),
        ("down, client", "tcp-down", ("cpu-client",), 2),
    ),
    "TCP, 1 stream": (
        ("up, 1000 switches/GB", "tcp-up", ("switches-client",), 1),
        ("down, 1000 switches/GB", "tcp-down", ("switches-client",), 1),
        ("up, retransmissions", "tcp-up", ("retransmissions",), 0),
        ("down, retransmissions", "tcp-down", ("retransmissions",), 0),
    ),
    "Ping, ms": (
        ("without load", "idle", ("ping",), 2),
        ("beside 1 stream up", "tcp-up", ("ping",), 2),
        ("95 % of these within", "tcp-up", ("ping95",), 2),
        ("beside 1 stream down", "tcp-down", ("ping",), 2),
    ),
    "UDP of 1340 octets": (
        ("0.3 Gbit/s, loss in %", "udp-300", ("loss",), 2),
        ("1 Gbit/s, loss in %", "udp-1000", ("loss",), 2),
        ("flood, Gbit/s through", "udp-max", ("rate",), 2),
        ("flood, loss in %", "udp-max", ("loss",), 2),
    ),
    "UDP flood, 1000/s; memory, MiB": (
        ("200 octets", "udp-200", ("packets",), 1),
        ("64 octets", "udp-64", ("packets",), 1),
        ("memory, client", "peak", ("client",), 1),
        ("memory, other end", "peak", ("other",), 1),
    ),
}
# Of these, which are often 0, a ratio says nothing.
WITHOUT_RATIO = ("loss", "retransmissions")
# What is shown in thousands.
IN_THOUSANDS = ("switches-client",)
CELL = 27


class Results:
    def __init__(self, wires: dict[str, list[dict]]):
        self.wires = wires

    def tunnels(self, wire: str) -> list[str]:
        return list(dict.fromkeys(name for each in self.wires[wire] for name in each))

    def values(self, wire: str, tunnel: str, load: str, figures: tuple[str, ...]) -> list[float | None]:
        """One of each round."""
        found = []
        for each in self.wires.get(wire, []):
            parts = [each.get(tunnel, {}).get(load, {}).get(figure) for figure in figures]
            found.append(None if None in parts else sum(parts))
        return found

    def known(self, *what) -> list[float]:
        return [value for value in self.values(*what) if value is not None]

    def median(self, *what) -> float | None:
        known = self.known(*what)
        return statistics.median(known) if known else None

    def ratio(self, wire: str, ours: str, theirs: str, *what) -> float | None:
        """The median of the ratios within a round."""
        pairs = zip(self.values(wire, ours, *what), self.values(wire, theirs, *what))
        ratios = [our / their for our, their in pairs if our is not None and their]
        return statistics.median(ratios) if ratios else None


def cell(results: Results, wire: str, name: str, reference: str, load: str, figures: tuple[str, ...], digits: int) -> str:
    known = results.known(wire, name, load, figures)
    if not known:
        return "-"
    scale = 1000 if figures[0] in IN_THOUSANDS else 1
    low, middle, high = (f"{each / scale:.{digits}f}" for each in (min(known), statistics.median(known), max(known)))
    words = middle + (f" ({low}-{high})" if len(known) > 1 else "")
    ratio = results.ratio(wire, reference, name, load, figures)
    if ratio is None or name == reference or figures[0] in WITHOUT_RATIO:
        return words
    return f"{words} {ratio:.2f}x"


def table(results: Results, wire: str, words: str, reference: str) -> str:
    names = results.tunnels(wire)
    width = max(map(len, [*names, *BLOCKS]))
    lines = [f"\n{wire}: {words}"]
    for title, columns in BLOCKS.items():
        measured = [column for column in columns if any(results.known(wire, name, *column[1:3]) for name in names)]
        if measured:
            lines.append(f"\n  {title:{width}}" + "".join(f"{words:>{CELL}}" for words, *_ in measured))
        for name in names:
            cells = [cell(results, wire, name, reference, *what) for _, *what in measured]
            if any(each != "-" for each in cells):
                lines.append(f"  {name:{width}}" + "".join(f"{each:>{CELL}}" for each in cells))
    return "\n".join(lines)


def target(name: str, value: float | None, digits: int, limit: float, is_least: bool, unit: str = "") -> dict:
    met = None if value is None else value >= limit if is_least else value <= limit
    return {
        "target": f"{name}: at {'least' if is_least else 'most'} {limit:g}{unit}",
        "measured": "not measured" if value is None else f"{value:.{digits}f}{unit}",
        "met": met,
    }


def targets(results: Results, idle: dict[str, dict[str, float]]) -> list[dict]:
    """What Peregrine aims at, and whether it got there. Figures are medians, of ratios those within a round."""

    def rate(wire: str, other: str, least: float) -> dict:
        value = results.ratio(wire, OURS, other, "tcp-up", ("rate",))
        return target(f"TCP, 1 stream up, {wire}, by {other}'s", value, 2, least, True)

    def against_wireguard(name: str, limit: float, is_least: bool, *what) -> dict:
        return target(f"{name}, thru, by wireguard-go's", results.ratio("thru", OURS, "wireguard-go", *what), 2, limit, is_least)

    def own(name: str, digits: int, most: float, unit: str, *what) -> dict:
        return target(f"{name}, thru", results.median("thru", OURS, *what), digits, most, False, unit)

    return [
        rate("thru", "wireguard-go", 2.2),
        rate("gro", "wireguard-go", 2.2),
        rate("nogro", "wireguard-go", 3),
        rate("thru", "boringtun", 5),
        rate("thru", "strongSwan to strongSwan", 10),
        against_wireguard("CPU-s/GB of both ends, TCP, 1 stream up", 0.5, False, "tcp-up", ("cpu-client", "cpu-other")),
        own("Loss of UDP of 1340 octets at 1 Gbit/s", 2, 2, " %", "udp-1000", ("loss",)),
        against_wireguard("Packets of 64 octets", 1.5, True, "udp-64", ("packets",)),
        against_wireguard("Ping beside 1 TCP stream up", 1, False, "tcp-up", ("ping",)),
        own("Retransmissions, TCP, 1 stream up", 0, 0, "", "tcp-up", ("retransmissions",)),
        own("Peak memory of the client", 1, 16, " MiB", "peak", ("client",)),
        target("Wake-ups of the idle client", idle.get(OURS, {}).get("client"), 2, 1, False, "/s"),
    ]


def target_list(aims: list[dict]) -> str:
    width = max(len(each["target"]) for each in aims)
    lines = ["\nTargets"]
    for each in aims:
        met = {True: "met", False: "not met", None: "-"}[each["met"]]
        lines.append(f"  {each['target']:{width}}  {each['measured']:>12}  {met}")
    return "\n".join(lines)


def machine() -> dict:
    def found(file: str, pattern: str) -> str:
        match = re.search(pattern, pathlib.Path(file).read_text(), re.MULTILINE)
        return match[1] if match else "unknown"

    return {
        "processor": found("/proc/cpuinfo", r"^model name\s*: (.+)$"),
        "cores": os.cpu_count(),
        "memory_mib": int(found("/proc/meminfo", r"^MemTotal:\s+(\d+)")) // 1024,
        "kernel": f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
        "system": found("/etc/os-release", r'^PRETTY_NAME="(.+)"$'),
        "virtualisation": run(detect, check=False).strip() if (detect := shutil.which("systemd-detect-virt")) else "unknown",
        "versions": versions(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def rounded(value):
    """Four digits say all."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return value


def as_json(value, depth: int = 5, indent: str = "") -> str:
    """Indented as far as that depth, so that a tunnel's figures are one line each."""
    if depth == 0 or not isinstance(value, (dict, list)) or not value:
        return json.dumps(value)
    further = indent + " "
    if isinstance(value, dict):
        items = [f"{further}{json.dumps(key)}: {as_json(each, depth - 1, further)}" for key, each in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    items = [further + as_json(each, depth - 1, further) for each in value]
    return "[\n" + ",\n".join(items) + f"\n{indent}]"
