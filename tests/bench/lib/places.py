"""Two network namespaces with a wire between them, and what the processes in them use."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess

# Several runs can stand side by side.
CLIENT, GATEWAY = (f"pgbench{os.getpid()}-{end}" for end in ("cli", "gw"))
OUTER = {CLIENT: "192.0.2.2", GATEWAY: "192.0.2.1"}
# What is reached through the tunnel, at the gateway, and what the client is called in it.
INNER, INNER_CLIENT = "10.1.0.2", "10.3.0.1"
WIRES = {
    "thru": "the wire passes large datagrams through whole",
    "gro": "datagrams are cut, and put together again",
    "nogro": "datagrams are cut, and stay so",
}


def run(*command: str, check: bool = True, timeout: float = 60) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def within(place: str, *command: str, **options) -> str:
    return run("ip", "netns", "exec", place, *command, **options)


def start(place: str, *command: str, **options) -> subprocess.Popen:
    """Its process is the command's own, as each program in between becomes the next."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stderr", subprocess.DEVNULL)
    return subprocess.Popen(["ip", "netns", "exec", place, *command], text=True, **options)


def stop(process: subprocess.Popen, how: int = signal.SIGTERM) -> None:
    process.send_signal(how)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def network(wire: str):
    try:
        for place in OUTER:
            run("ip", "netns", "add", place)
            run("ip", "-n", place, "link", "set", "lo", "up")
        run("ip", "-n", CLIENT, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", GATEWAY)
        for place, address in OUTER.items():
            run("ip", "-n", place, "addr", "add", f"{address}/24", "dev", "wire")
            run("ip", "-n", place, "link", "set", "wire", "up")
            if wire != "thru":
                within(place, "ethtool", "-K", "wire", "tx-udp-segmentation", "off")
            if wire == "gro":
                # A virtual wire believes that whatever can cut TCP need not be put together.
                within(place, "ethtool", "-K", "wire", "tso", "off", "gro", "on")
        yield
    finally:
        for place in OUTER:
            run("ip", "netns", "del", place, check=False)


def cpu_seconds(pid: int) -> float:
    """Processor time of all its threads, also of those that have ended."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def switches(pid: int) -> int:
    """Context switches of its threads: those that it waited for, and those that it had to make."""
    count = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            count += sum(map(int, re.findall(r"voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text())))
    return count


def peak_mib(pid: int) -> float:
    """The most memory that it has had."""
    found = re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())
    if not found:
        raise RuntimeError(f"process {pid} has ended")
    return int(found[1]) / 1024


class Steal:
    """What other machines on the same hardware took of this one's processors since this began."""

    def __init__(self):
        self.before = self.now()

    @staticmethod
    def now() -> list[int]:
        return [int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]

    def percent(self) -> float:
        spent = [after - before for after, before in zip(self.now(), self.before)]
        return 100 * spent[7] / max(sum(spent), 1)
