"""Two workers and a head of Ray as network namespaces of this machine: what happens to requests if a host dies.

Run it as root, with the interpreter of an environment that has Ray and this project:

    .venv/bin/python scripts/research/ray_hosts.py model_store/digits.mar --death kill

--death kill ends all processes of a host at once; --death cut takes its network away, so that it hangs. It prints one
JSON object: replicas per host, and how many requests got which status before, during and after. This shows behaviour
and not speed, because all hosts share this machine's cores.

Exit status: 0; 1 if an answer was wrong, or if the replicas did not come back; 3 if there are no namespaces here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "archive" / "digits" / "samples"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BRIDGE, SUBNET, HTTP_PORT, RAY_PORT = "rayhosts", "10.213.77", 8080, 6379
HOSTS = ("rayhead", "rayone", "raytwo")
CLIENTS = 4
REQUEST_S = 120
PATIENCE_S = 180
# Run in the head's namespace: deploys the args, and prints how many replicas each address has, when asked.
DEPLOYER = """
import json, sys, ray
from ray import serve
from ray_host import failures
from ray_host.app import build
logs = ray.init(address="auto", log_to_driver=False, logging_level="ERROR").address_info["session_dir"] + "/logs"
quiet = {"enable_access_log": False, "log_level": "WARNING"}
options = {"host": "0.0.0.0", "port": %d, "location": "EveryNode"}
serve.start(proxy_location="EveryNode", http_options=options, logging_config=quiet)
try:
    serve.run(build(json.loads(sys.argv[1])), name="models", route_prefix="/")
except RuntimeError as error:
    sys.exit(failures.of_models(serve.status().applications, "models", error, logs))
print("ready", flush=True)
for line in sys.stdin:
    found = {}
    for name, state in serve.status().applications["models"].deployments.items():
        found[name] = dict(state.replica_states)
    found["alive"] = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    print("state", json.dumps(found, default=str), flush=True)
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def address(host: str) -> str:
    return f"{SUBNET}.{HOSTS.index(host) + 1}"


@contextlib.contextmanager
def namespaces(hosts: Sequence[str] = HOSTS) -> Iterator[None]:
    """A network with these hosts, and with this machine as .254. Raises OSError or CalledProcessError."""
    with contextlib.ExitStack() as made:
        ip("link", "add", BRIDGE, "type", "bridge")
        made.callback(ip, "link", "del", BRIDGE)
        ip("addr", "add", f"{SUBNET}.254/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for host in hosts:
            ip("netns", "add", host)
            made.callback(ip, "netns", "del", host)
            ip("link", "add", f"v-{host}", "type", "veth", "peer", "name", "eth0", "netns", host)
            made.callback(ip, "link", "del", f"v-{host}")  # at once: a namespace goes when its last process has ended
            ip("link", "set", f"v-{host}", "master", BRIDGE, "up")
            for words in (
                ("addr", "add", f"{address(host)}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", host, *words)
        yield


def inside(host: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", host, *command]


def start(host: str, folder: str, environment: dict[str, str], log: Any, cpus: int = 2) -> None:
    """Start Ray's processes of a host. folder: for the files of the head and the others. cpus: that Ray counts."""
    role = [f"--address={address(HOSTS[0])}:{RAY_PORT}"]
    if host == HOSTS[0]:
        role = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false", f"--temp-dir={folder}"]
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["start", *role, f"--node-ip-address={address(host)}", f"--num-cpus={cpus}"]
    options += ["--object-store-memory=100000000", "--disable-usage-stats"]
    subprocess.run(inside(host, ray, *options), env=environment, check=True, stdout=log, stderr=log, timeout=120)


def ray_environment() -> dict[str, str]:
    """Return the environment of all programs of one cluster, with a token of its own."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts' / 'commands'}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # As scripts/deployment/ray/node has them:
        "RAY_worker_niceness": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "180",
    }


def end(host: str) -> None:
    """Kill what runs in a namespace of this script."""
    found = subprocess.run(["ip", "netns", "pids", host], check=False, capture_output=True, text=True)
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


class Load:
    """Clients that ask the head for digits without a pause."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.wrong, self.slowest_s = 0, 0.0
        self.ends, self.lock = threading.Event(), threading.Lock()
        self.clients = [threading.Thread(target=self.client, args=(number,)) for number in range(CLIENTS)]

    def client(self, number: int) -> None:
        while not self.ends.is_set():
            number = (number + 1) % len(WORDS)
            started = time.monotonic()
            status, right = ask(number)
            with self.lock:
                self.statuses[status] += 1
                self.wrong += not right
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)

    def taken(self) -> dict[str, Any]:
        """What came since the last call."""
        with self.lock:
            found = {"statuses": dict(self.statuses), "slowest_s": round(self.slowest_s, 2)}
            self.statuses.clear()
            self.slowest_s = 0.0
        return found


def ask(digit: int, host: str = HOSTS[0]) -> tuple[str, bool]:
    """The status, or the error, of one request, and whether the answer is right. host: that is asked."""
    url = f"http://{address(host)}:{HTTP_PORT}/predictions/digits"
    request = urllib.request.Request(
        url, (SAMPLES / f"{WORDS[digit]}.png").read_bytes(), {"Content-Type": "image/png"}
    )
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
            return str(answer.status), json.load(answer)[0]["label"] == str(digit)
    except urllib.error.HTTPError as error:
        return str(error.code), True
    except (OSError, ValueError) as error:
        return type(error).__name__, True


class Deployer:
    """The program that deploys, in the head's namespace."""

    def __init__(self, args: dict[str, Any], environment: dict[str, str], log: Any) -> None:
        command = inside(HOSTS[0], sys.executable, "-c", DEPLOYER % HTTP_PORT, json.dumps(args))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=log)
        self._told("ready")

    def state(self) -> dict[str, Any]:
        """Replicas by deployment and state, and the hosts that Ray takes for alive."""
        print(file=self.process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._told("state"))
        return found

    def _told(self, wanted: str) -> str:
        """The rest of the next line that begins with a word; Ray prints lines of its own. Raises RuntimeError."""
        for line in self.process.stdout or ():
            word, _, rest = line.strip().partition(" ")
            if word == wanted:
                return rest
        raise RuntimeError("the program that deploys has ended; the log has the reason")


def replicas_on(host: str) -> int:
    """Replicas of the model whose process lies in a host's namespace."""
    pids = subprocess.run(["ip", "netns", "pids", host], check=True, capture_output=True, text=True).stdout.split()
    titles = [Path(f"/proc/{pid}/cmdline") for pid in pids]
    return sum(b"ServeReplica:models:digits" in title.read_bytes() for title in titles if title.exists())


def is_whole(deployer: Deployer, hosts: list[str], wanted: int) -> bool:
    """Whether so many replicas answer on these hosts."""
    return sum(map(replicas_on, hosts)) >= wanted and deployer.state()["digits"].get("RUNNING", 0) >= wanted


def measure(deployer: Deployer, death: str, seconds: float) -> dict[str, Any]:
    """Ask, let a worker with replicas die, ask on until the replicas are back, and then for a while."""
    load, victim = Load(), max(HOSTS[1:], key=replicas_on)
    told: dict[str, Any] = {"hosts": len(HOSTS), "death": death, "victim": victim, "start": deployer.state()}
    told["replicas_per_host"] = {host: replicas_on(host) for host in HOSTS}
    wanted = sum(told["replicas_per_host"].values())
    for client in load.clients:
        client.start()
    try:
        time.sleep(seconds)
        told["before"] = load.taken()
        if death == "kill":
            end(victim)
        else:
            ip("link", "set", f"v-{victim}", "down")
        died = time.monotonic()
        others = [host for host in HOSTS if host != victim]
        while not is_whole(deployer, others, wanted) and time.monotonic() < died + PATIENCE_S:
            time.sleep(0.5)
        time.sleep(seconds)
        told["until_replaced"] = {"seconds": round(time.monotonic() - died - seconds, 1), **load.taken()}
        time.sleep(seconds)
        told["after"] = load.taken()
    finally:
        load.ends.set()
        for client in load.clients:
            client.join()
    told["replicas_per_host_after"] = {host: replicas_on(host) for host in others}
    return {**told, "end": deployer.state(), "wrong": load.wrong, "is_whole": is_whole(deployer, others, wanted)}


def main() -> int:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("archive", type=Path, help="the demo's digits.mar")
    found.add_argument("--death", choices=("kill", "cut"), default="kill")
    found.add_argument("--replicas", type=int, default=3)
    found.add_argument("--seconds", type=float, default=5, help="of load before and after (default: %(default)s)")
    found.add_argument("--other-version", action="store_true", help="take an archive of other handlers than these")
    found.add_argument("--log", type=Path, default=Path("ray_hosts.log"))
    chosen = found.parse_args()
    environment = ray_environment()
    model = {"archive": str(chosen.archive.resolve()), "replicas": chosen.replicas, "num_gpus": 0, "name": "digits"}
    model["allow_other_version"] = chosen.other_version
    with contextlib.ExitStack() as stack, chosen.log.open("w") as log:
        try:
            stack.enter_context(namespaces())
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no network namespaces here: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
            return 3
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        for host in HOSTS:
            stack.callback(end, host)
        for host in HOSTS:
            start(host, folder, environment, log)
        told = measure(
            Deployer({"models": [model], "fronts": 2, "front_num_cpus": 0}, environment, log),
            chosen.death,
            chosen.seconds,
        )
    print(json.dumps(told, indent=1))
    return int(told["wrong"] > 0 or not told["is_whole"])


if __name__ == "__main__":
    sys.exit(main())
