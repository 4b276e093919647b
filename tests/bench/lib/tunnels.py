"""The tunnels that are compared. Each is a context that makes one between the two places and gives the processes of its
client and of its other end, as far as there are any."""

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
import time

from lib.places import CLIENT, GATEWAY, INNER, INNER_CLIENT, OUTER, run, start, stop, within

BIN = pathlib.Path(os.environ["PEREGRINE_BIN"]).parent
CACHE = pathlib.Path(os.environ["PEREGRINE_CACHE"])
WIREGUARD_GO = CACHE / "wireguard-forky/root/usr/bin/wireguard-go"
BORINGTUN = CACHE / "boringtun/bin/boringtun-cli"
NAMES = pathlib.Path(__file__).resolve().parents[2] / "src/lab/names.rs"
PSK = re.search(r'PSK: &str = "([^"]+)"', NAMES.read_text())[1]
USER, SERVER = "psk-user@vpn.lab", "psk.vpn.lab"

PROFILE = f"""name = "Benchmark"
[gateway]
address = "{OUTER[GATEWAY]}"
identity = "{SERVER}"
[auth]
method = "psk"
identity = "{USER}"
psk = "{PSK}"
"""

# kernel-libipsec (ESP in user space) must come before kernel-netlink, as in tests/netns.
STRONGSWAN_CONF = """charon-systemd {
  load = random nonce openssl aes sha1 sha2 gcm curve25519 hmac kdf kernel-libipsec kernel-netlink socket-default vici
  journal {
    default = -1
  }
  filelog {
    stderr {
      default = 1
    }
  }
}
"""
SWANCTL_GATEWAY = f"""connections {{
  bench {{
    version = 2
    local_addrs = {OUTER[GATEWAY]}
    proposals = aes256gcm16-prfsha256-prfsha384-x25519-ecp256
    pools = pool
    local {{
      auth = psk
      id = {SERVER}
    }}
    remote {{
      auth = psk
      id = {USER}
    }}
    children {{
      bench {{
        local_ts = {INNER}/32
        esp_proposals = aes256gcm16
      }}
    }}
  }}
}}
pools {{
  pool {{
    addrs = {INNER_CLIENT}
  }}
}}
secrets {{
  ike-psk {{
    secret = "{PSK}"
  }}
}}
"""
SWANCTL_CLIENT = f"""connections {{
  bench {{
    version = 2
    remote_addrs = {OUTER[GATEWAY]}
    vips = 0.0.0.0
    proposals = aes256gcm16-prfsha384-x25519
    local {{
      auth = psk
      id = {USER}
    }}
    remote {{
      auth = psk
      id = {SERVER}
    }}
    children {{
      bench {{
        remote_ts = {INNER}/32
        esp_proposals = aes256gcm16
      }}
    }}
  }}
}}
secrets {{
  ike-psk {{
    secret = "{PSK}"
  }}
}}
"""


@contextlib.contextmanager
def no_tunnel(_folder):
    run("ip", "-n", GATEWAY, "addr", "add", f"{INNER}/32", "dev", "lo")
    run("ip", "-n", CLIENT, "route", "add", INNER, "via", OUTER[GATEWAY])
    yield []


@contextlib.contextmanager
def our_client(folder, *options: str):
    profile = folder / "profile.toml"
    profile.touch(mode=0o600)
    profile.write_text(PROFILE)
    command = [str(BIN / "peregrine"), "connect", str(profile), "--json", "--timeout", "20", *options]
    client = start(CLIENT, *command, stdout=subprocess.PIPE)
    try:
        if not any(json.loads(line).get("state") == "connected" for line in client.stdout):
            raise RuntimeError("peregrine does not connect")
        threading.Thread(target=client.stdout.read, daemon=True).start()
        yield client.pid
    finally:
        stop(client)


@contextlib.contextmanager
def our_gateway(encr: str):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    gateway = start(GATEWAY, str(BIN / "lab-endpoint"), OUTER[GATEWAY], INNER, encr, **pipes)
    try:
        if gateway.stdout.readline() != "ready\n":
            raise RuntimeError("lab-endpoint does not start")
        yield gateway.pid
    finally:
        # It ends with its standard input.
        gateway.stdin.close()
        try:
            gateway.wait(timeout=20)
        except subprocess.TimeoutExpired:
            stop(gateway)


@contextlib.contextmanager
def peregrine(folder, encr: str = "gcm", without: tuple[str, ...] = ()):
    options = ["--without", ",".join(without)] if without else []
    with our_gateway(encr) as gateway, our_client(folder, *options) as client:
        yield [client, gateway]


@contextlib.contextmanager
def charon(place: str, folder, swanctl_conf: str):
    """A strongSwan with the configuration laid over /etc, and what runs swanctl beside it."""
    etc = folder / f"charon-{place}"
    swanctl = etc / "swanctl"
    swanctl.mkdir(parents=True, exist_ok=True)
    (etc / "strongswan.conf").write_text(STRONGSWAN_CONF)
    secret = swanctl / "swanctl.conf"
    secret.touch(mode=0o600)
    secret.write_text(swanctl_conf)
    mounted = (
        "mount -t tmpfs -o mode=755 tmpfs /run",
        f"mount --bind '{etc}/strongswan.conf' /etc/strongswan.conf",
        f"mount --bind '{swanctl}' /etc/swanctl",
        f"exec '{shutil.which('charon-systemd')}'",
    )
    log = etc / "log"
    with log.open("w") as said:
        process = start(place, "sh", "-c", " && ".join(mounted), stdout=said, stderr=said)

    def command(*words: str, check: bool = True) -> str:
        return run("nsenter", "--target", str(process.pid), "--net", "--mount", "swanctl", *words, check=check)

    try:
        deadline = time.time() + 15
        while "uptime" not in command("--stats", check=False):
            if time.time() > deadline or process.poll() is not None:
                raise RuntimeError(f"strongSwan does not start:\n{log.read_text()}")
            time.sleep(0.1)
        command("--load-all", "--noprompt")
        yield process.pid, command
    finally:
        stop(process)


@contextlib.contextmanager
def strongswan_gateway(folder):
    run("ip", "-n", GATEWAY, "addr", "add", f"{INNER}/32", "dev", "lo")
    with charon(GATEWAY, folder, SWANCTL_GATEWAY) as (gateway, _):
        yield gateway


@contextlib.contextmanager
def peregrine_to_strongswan(folder):
    with strongswan_gateway(folder) as gateway, our_client(folder) as client:
        yield [client, gateway]


@contextlib.contextmanager
def strongswan(folder):
    with strongswan_gateway(folder) as gateway, charon(CLIENT, folder, SWANCTL_CLIENT) as (client, command):
        command("--initiate", "--child", "bench", "--timeout", "20")
        yield [client, gateway]


@contextlib.contextmanager
def wireguard(folder, *program: str):
    """One of the programs that are WireGuard in user space, at both ends."""
    keys = {}
    for place in OUTER:
        private = run("wg", "genkey").strip()
        public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True).stdout.strip()
        keys[place] = (private, public)
    ends = ((CLIENT, GATEWAY, f"{INNER_CLIENT}/32", INNER), (GATEWAY, CLIENT, f"{INNER}/32", INNER_CLIENT))
    with contextlib.ExitStack() as started:
        pids = []
        for place, other, address, far in ends:
            # Each place has a folder of its own for the socket that the program is configured by.
            run_folder = folder / place
            shutil.rmtree(run_folder, ignore_errors=True)
            run_folder.mkdir()
            mounted = f"mkdir -p /var/run/wireguard && mount --bind '{run_folder}' /var/run/wireguard"
            inside = f"{mounted} && exec {' '.join(program)} wg0"
            process = start(place, "sh", "-c", inside, stdout=subprocess.DEVNULL)
            started.callback(stop, process)
            pids.append(process.pid)
            deadline = time.time() + 10
            while not (run_folder / "wg0.sock").exists():
                if time.time() > deadline or process.poll() is not None:
                    raise RuntimeError(f"{program[0]} does not start")
                time.sleep(0.05)
            key = folder / f"{place}.key"
            key.touch(mode=0o600)
            key.write_text(keys[place][0])
            peer = ["peer", keys[other][1], "allowed-ips", f"{far}/32", "endpoint", f"{OUTER[other]}:51820"]
            settings = " ".join(["wg", "set", "wg0", "listen-port", "51820", "private-key", str(key), *peer])
            within(place, "sh", "-c", f"{mounted} && {settings}")
            run("ip", "-n", place, "addr", "add", address, "dev", "wg0")
            run("ip", "-n", place, "link", "set", "wg0", "mtu", "1420", "up")
            run("ip", "-n", place, "route", "add", far, "dev", "wg0")
        yield pids


@contextlib.contextmanager
def wireguard_go(folder):
    with wireguard(folder, f"'{WIREGUARD_GO}'", "-f") as pids:
        yield pids


@contextlib.contextmanager
def boringtun(folder):
    with wireguard(folder, f"'{BORINGTUN}'", "--foreground", "--disable-drop-privileges") as pids:
        yield pids


OFFLOADS = ("tso", "tun-gro", "udp-gso", "udp-gro")
OURS = "Peregrine, AES-256-GCM"
NAIVE = "Peregrine, no offload"
TUNNELS = {
    "no tunnel": no_tunnel,
    OURS: peregrine,
    "Peregrine, ChaCha20-Poly1305": functools.partial(peregrine, encr="chacha"),
    "Peregrine, AES-256-CBC, SHA-256": functools.partial(peregrine, encr="cbc"),
    NAIVE: functools.partial(peregrine, without=OFFLOADS),
    **{f"Peregrine without {each}": functools.partial(peregrine, without=(each,)) for each in OFFLOADS},
    "wireguard-go": wireguard_go,
    "boringtun": boringtun,
    "Peregrine to strongSwan": peregrine_to_strongswan,
    "strongSwan to strongSwan": strongswan,
}


def versions() -> dict[str, str]:
    """Which release of each was measured."""
    house = pathlib.Path(__file__).resolve().parents[3]
    # It may belong to another user than root.
    git = ["git", "-c", f"safe.directory={house}", "-C", str(house), "describe", "--always", "--dirty"]
    found = {
        "Peregrine": f"{run(str(BIN / 'peregrine'), '--version').split()[-1]} ({run(*git, check=False).strip()})",
        "wireguard-go": (WIREGUARD_GO.parents[3] / "version").read_text().strip(),
        "strongSwan": re.search(r"strongSwan (\S+)", run("swanctl", "--help", check=False))[1],
        "iperf3": run("iperf3", "--version").split()[1],
    }
    if BORINGTUN.exists():
        found["boringtun"] = run(str(BORINGTUN), "--version").split()[-1]
    return found
