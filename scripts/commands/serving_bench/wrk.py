"""Closed-loop load by wrk, and the Lua script that it runs."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from serving_bench.load import Counted, Endpoint, GeneratorError, Load

TIMEOUT_S = 60  # of one request; wrk drops the time of a later answer and counts it as a timeout
LUA_BYTES = 256 << 20  # that all threads' bodies may have: some builds of LuaJIT address 2 GiB, the copies included

# Each thread starts at another body. Latencies come in microseconds.
SCRIPT = Template("""\
local folder, count, threads, out = $folder, $count, $threads, $out
local started = 0

function setup(thread)
  thread:set("place", started)
  started = started + 1
  if not all then all = {} end
  table.insert(all, thread)
end

function init(args)
  codes, requests = {}, {}
  for index = 1, count do
    local file = assert(io.open(folder .. "/" .. index, "rb"))
    requests[index] = wrk.format("POST", nil, nil, file:read("*a"))
    file:close()
  end
  turn = math.floor(place * count / threads)
end

function request()
  turn = turn % count + 1
  return requests[turn]
end

function response(status)
  codes[status] = (codes[status] or 0) + 1
end

function done(summary, latency, requests)
  local sums, parts = {}, {}
  for _, thread in ipairs(all) do
    for status, times in pairs(thread:get("codes")) do sums[status] = (sums[status] or 0) + times end
  end
  for status, times in pairs(sums) do table.insert(parts, string.format('"%d": %d', status, times)) end
  local errors = summary.errors
  local file = assert(io.open(out, "w"))
  file:write(string.format(
    '{"seconds": %.6f, "statuses": {%s}, "connect": %d, "read": %d, "write": %d, "timeout": %d, ' ..
    '"p50": %d, "p90": %d, "p99": %d, "p999": %d, "max": %d}',
    summary.duration / 1e6, table.concat(parts, ", "), errors.connect, errors.read, errors.write, errors.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max))
  file:close()
end
""")


@dataclass(frozen=True)
class Wrk:
    """wrk, the program at `path`, with at most `threads` threads."""

    path: str
    threads: int

    @property
    def name(self) -> str:
        """For reports, with the version."""
        said = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=False).stdout
        return " ".join(said.split()[:2]) or "wrk"

    def closed(self, endpoint: Endpoint, load: Load, clients: int, seconds: float) -> Counted:
        """Keep `clients` requests open for `seconds` (whole ones, 1 or more). Raises GeneratorError."""
        threads = threads_for(clients, self.threads)
        with tempfile.TemporaryDirectory(prefix="wrk-") as name:
            folder = Path(name)
            count = write_bodies(folder, load.bodies, threads)
            script = folder / "load.lua"
            script.write_text(_script(folder, count, threads))
            command = [self.path, "-t", str(threads), "-c", str(clients), "-d", f"{max(1, round(seconds))}s"]
            command += ["--timeout", f"{TIMEOUT_S}s", "-s", str(script)]
            for key, value in {**endpoint.headers, **load.headers}.items():
                command += ["-H", f"{key}: {value}"]
            cpu_seconds = _run([*command, endpoint.url])
            return _counted(folder / "out.json", self.name, cpu_seconds)


def find(asked: str | None) -> str | None:
    """Where wrk lies: as asked, else on the PATH; None if it is on neither. Raises ValueError for a wrong path."""
    if asked is None:
        return shutil.which("wrk")
    found = shutil.which(asked)
    if found is None:
        raise ValueError(f"--wrk {asked}: there is no such program. On Debian and Ubuntu: apt install wrk")
    return found


def threads_for(clients: int, most: int) -> int:
    """The most threads that share the clients out evenly: wrk rounds down."""
    return max(threads for threads in range(1, max(1, min(clients, most)) + 1) if clients % threads == 0)


def write_bodies(folder: Path, bodies: Sequence[bytes], threads: int) -> int:
    """Files 1, 2, ... in `folder`, as many as fit into Lua's memory; how many. Raises GeneratorError if none does."""
    room, count = LUA_BYTES // threads, 0
    for body in bodies:
        room -= len(body)
        if room < 0:
            break
        count += 1
        (folder / str(count)).write_bytes(body)
    if not count:
        raise GeneratorError(f"a body of {len(bodies[0])} bytes is too large for wrk; take --generator streams")
    return count


def _script(folder: Path, count: int, threads: int) -> str:
    out = folder / "out.json"
    return SCRIPT.substitute(folder=json.dumps(str(folder)), count=count, threads=threads, out=json.dumps(str(out)))


def _run(command: Sequence[str]) -> float:
    """Run wrk to its end; the CPU seconds that it took. Ends it if this process is interrupted."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ) as process:
        try:
            _, said = process.communicate()
        except BaseException:
            process.kill()
            raise
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise GeneratorError(f"wrk failed with exit status {process.returncode}: {said.decode()[-500:].strip()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _counted(out: Path, name: str, cpu_seconds: float) -> Counted:
    if not out.is_file():
        raise GeneratorError("wrk wrote no figures: its Lua script failed")
    said = json.loads(out.read_text())
    failures = {key: said[key] for key in ("connect", "read", "write", "timeout") if said[key]}
    quantiles = ("p50", "p90", "p99", "p999", "max") if said["statuses"] else ()
    latency_ms = {key: said[key] / 1e3 for key in quantiles}
    return Counted(name, said["seconds"], said["statuses"], failures, latency_ms, cpu_seconds)
