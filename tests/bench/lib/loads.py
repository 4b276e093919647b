"""What is sent through a tunnel, and what is measured meanwhile."""

import contextlib
import json
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

from lib.places import CLIENT, GATEWAY, INNER, Steal, cpu_seconds, network, peak_mib, run, start, stop, switches, within

SECONDS = 3
# How iperf3 is called for each.
TCP = {
    "tcp-up": (),
    "tcp-down": ("-R",),
    "tcp4-up": ("-P", "4"),
    "tcp4-down": ("-P", "4", "-R"),
}
# A datagram socket holds 0.2 MB unless asked for more: 1 ms of 1 Gbit/s. What iperf3 itself does not fetch in time, with all of
# this on the same cores, is no loss of a tunnel. The system has a limit, beyond which iperf3 gives up.
LIMITS = [pathlib.Path(f"/proc/sys/net/core/{way}mem_max") for way in "rw"]
ROOM = ("-w", str(min(4 << 20, *(int(limit.read_text()) for limit in LIMITS))))
UDP = {
    "udp-300": ("-u", *ROOM, "-b", "300M", "-l", "1340"),
    "udp-1000": ("-u", *ROOM, "-b", "1G", "-l", "1340"),
    "udp-max": ("-u", *ROOM, "-b", "0", "-l", "1340"),
    "udp-200": ("-u", *ROOM, "-b", "0", "-l", "200"),
    "udp-64": ("-u", *ROOM, "-b", "0", "-l", "64"),
}
LOADS = TCP | UDP
ENDS = ("client", "other")
# More of the processors taken by others than this, and a run does not count.
STEAL = 10.0
# How often one is tried then, and how many are repeated in a round.
TRIES = 3
REPEATS = 15
IDLE = 60
# What may go wrong with a tunnel or a load: it is noted, and the others are measured all the same.
FAILURES = (OSError, RuntimeError, ValueError, KeyError, subprocess.TimeoutExpired)


def ping(*options: str) -> subprocess.Popen:
    return start(CLIENT, "ping", "-n", "-i", "0.02", *options, INNER, stdout=subprocess.PIPE)


def delays(pinging: subprocess.Popen) -> dict[str, float]:
    """In ms: the median, and what 95 % stay below."""
    times = sorted(map(float, re.findall(r"time=([\d.]+) ms", pinging.communicate(timeout=20)[0])))
    if not times:
        return {}
    return {"ping": statistics.median(times), "ping95": times[len(times) * 95 // 100]}


def iperf(load: str) -> dict:
    """What iperf3 says at its end. A server for each, as one whose client gave up may wait for it."""
    server = start(GATEWAY, "iperf3", "-s", "-1", "--forceflush", "-B", INNER, stdout=subprocess.PIPE)
    try:
        if not any("listening" in line for line in server.stdout):
            raise RuntimeError("iperf3 does not start")
        options = ("-c", INNER, "-t", str(SECONDS), "-J", *LOADS[load])
        return json.loads(within(CLIENT, "iperf3", *options, timeout=SECONDS + 20))["end"]
    finally:
        stop(server)


def carried(load: str, end: dict) -> dict[str, float]:
    """What came through: Gbit/s of payload, with what was lost of it; the size of it in GB."""
    if load in TCP:
        received = end["sum_received"]
        return {
            "rate": received["bits_per_second"] / 1e9,
            "retransmissions": end["sum_sent"]["retransmits"],
            "gigabytes": received["bytes"] / 1e9,
        }
    whole = end["sum"]
    arrived = whole["packets"] * (1 - whole["lost_percent"] / 100)
    gigabytes = arrived * int(LOADS[load][-1]) / 1e9
    return {
        "rate": 8 * gigabytes / whole["seconds"],
        "loss": whole["lost_percent"],
        "packets": arrived / whole["seconds"] / 1e3,
        "gigabytes": gigabytes,
    }


def once(pids: list[int], load: str) -> dict[str, float]:
    steal = Steal()
    before = [(cpu_seconds(pid), switches(pid)) for pid in pids]
    pinging = ping("-w", str(SECONDS))
    try:
        figures = carried(load, iperf(load))
        gigabytes = figures.pop("gigabytes")
        for end, pid, (cpu, switched) in zip(ENDS, pids, before):
            if gigabytes:
                figures[f"cpu-{end}"] = (cpu_seconds(pid) - cpu) / gigabytes
                figures[f"switches-{end}"] = (switches(pid) - switched) / gigabytes
        return figures | delays(pinging) | {"steal": steal.percent()}
    finally:
        if pinging.poll() is None:
            stop(pinging)


class Round:
    """Measures tunnels, and repeats what was disturbed, but not without end."""

    def __init__(self):
        self.repeats = REPEATS
        self.disturbed = 0
        self.dropped = 0
        self.problems: list[str] = []

    def undisturbed(self, pids: list[int], load: str) -> dict[str, float] | None:
        for _ in range(TRIES):
            figures = once(pids, load)
            if figures["steal"] <= STEAL:
                return figures
            self.disturbed += 1
            if not self.repeats:
                break
            self.repeats -= 1
        self.dropped += 1
        return None

    def measure(self, wire: str, name: str, tunnel, loads) -> dict[str, dict[str, float]]:
        """Of each load, and of the whole: "idle" with a ping without load, "peak" with the memory in MiB. What fails is
        noted and lacks."""
        results = {}
        try:
            with tempfile.TemporaryDirectory() as folder, network(wire), opened(tunnel, folder) as pids:
                results["idle"] = delays(ping("-c", "50"))
                for load in loads:
                    try:
                        if figures := self.undisturbed(pids, load):
                            results[load] = figures
                    except FAILURES as error:
                        self.note(wire, f"{name}, {load}", error)
                results["peak"] = {end: peak_mib(pid) for end, pid in zip(ENDS, pids)}
        except FAILURES as error:
            self.note(wire, name, error)
        return results

    def note(self, wire: str, what: str, error: Exception) -> None:
        words = " ".join(str(error).split())
        self.problems.append(f"{wire}, {what}: {words[:300]}")


@contextlib.contextmanager
def opened(tunnel, folder):
    """The tunnel, when something has come through it."""
    with tunnel(pathlib.Path(folder)) as pids:
        within(CLIENT, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", INNER)
        yield pids


def wakeups(tunnel) -> dict[str, float]:
    """Context switches a second of each end in a minute without traffic, after a while to settle."""
    with tempfile.TemporaryDirectory() as folder, network("thru"), opened(tunnel, folder) as pids:
        time.sleep(5)
        before = [switches(pid) for pid in pids]
        time.sleep(IDLE)
        return {end: (switches(pid) - was) / IDLE for end, pid, was in zip(ENDS, pids, before)}


def tracer() -> str | None:
    """What can count system calls here: perf, which hardly disturbs, or strace, which slows a program down many times."""
    if shutil.which("perf"):
        with contextlib.suppress(RuntimeError):
            run("perf", "stat", "-e", "raw_syscalls:sys_enter", "true")
            return "perf"
    return "strace" if shutil.which("strace") else None


def syscalls(tunnel, load: str, by: str) -> dict[str, float]:
    """System calls for each GB, in a run of its own."""
    with tempfile.TemporaryDirectory() as folder, network("thru"), opened(tunnel, folder) as pids:
        files = [f"{folder}/calls-{pid}" for pid in pids]
        commands = {
            "perf": ["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter"],
            "strace": ["strace", "-f", "-c", "-U", "name,calls"],
        }
        counting = [
            subprocess.Popen([*commands[by], "-o", file, "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for pid, file in zip(pids, files)
        ]
        try:
            time.sleep(0.5)
            gigabytes = carried(load, iperf(load))["gigabytes"]
        finally:
            for process in counting:
                stop(process, signal.SIGINT)
        result = {}
        for end, file in zip(ENDS, files):
            with open(file) as text:
                found = re.search(r"^(\d+),.*sys_enter|^total\s+(\d+)", text.read(), re.MULTILINE)
            if found:
                result[end] = int(found[1] or found[2]) / gigabytes
        return result
