"""The load generator wrk (github.com/wg/wrk), and the Lua script that it runs: a closed loop."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from serving_bench.generator import Endpoint, GeneratorError, Load, LoadResult, message_of

TIMEOUT_S = 60  # for one request; wrk counts a later answer as a timeout, and drops its time
LUA_BYTES = 256 << 20  # for the bodies of all threads: some builds of LuaJIT address 2 GiB, copies included

# Each thread starts at another body, and asks one server. Latencies come in microseconds. The bodies of errors come
# in hexadecimal digits, because they may hold any byte.
SCRIPT = Template("""\
local folder, count, threads, out = $folder, $count, $threads, $out
local servers = { $servers }
local started = 0

local function address_of(server)
  for _, address in ipairs(wrk.lookup(server.host, server.port)) do
    if wrk.connect(address) then return address end
  end
  error("nobody listens at " .. server.host .. ":" .. server.port)
end

function setup(thread)
  thread:set("index", started)
  thread.addr = address_of(servers[started % #servers + 1])
  started = started + 1
  if not all then all = {} end
  table.insert(all, thread)
end

function init(args)
  codes, requests, bodies = {}, {}, {}
  local server = servers[index % #servers + 1]
  for name, value in pairs(server.headers) do wrk.headers[name] = value end
  for number = 1, count do
    local file = assert(io.open(folder .. "/" .. number, "rb"))
    requests[number] = wrk.format("POST", server.path, nil, file:read("*a"))
    file:close()
  end
  turn = math.floor(index * count / threads)
end

function request()
  turn = turn % count + 1
  return requests[turn]
end

function response(status, headers, body)
  codes[status] = (codes[status] or 0) + 1
  if (status < 200 or status > 299) and not bodies[status] then
    bodies[status] = body:sub(1, 4096):gsub(".", function(byte) return string.format("%02x", byte:byte()) end)
  end
end

function done(summary, latency, requests)
  local sums, parts, errors_seen, words = {}, {}, {}, {}
  for _, thread in ipairs(all) do
    for status, times in pairs(thread:get("codes")) do sums[status] = (sums[status] or 0) + times end
    for status, body in pairs(thread:get("bodies")) do errors_seen[status] = body end
  end
  for status, times in pairs(sums) do table.insert(parts, string.format('"%d": %d', status, times)) end
  for status, body in pairs(errors_seen) do table.insert(words, string.format('"%d": "%s"', status, body)) end
  local errors = summary.errors
  local file = assert(io.open(out, "w"))
  file:write(string.format(
    '{"seconds": %.6f, "statuses": {%s}, "bodies": {%s}, "connect": %d, "read": %d, "write": %d, "timeout": %d, ' ..
    '"p50": %d, "p90": %d, "p99": %d, "p999": %d, "max": %d}',
    summary.duration / 1e6, table.concat(parts, ", "), table.concat(words, ", "),
    errors.connect, errors.read, errors.write, errors.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max))
  file:close()
end
""")


@dataclass(frozen=True)
class WrkGenerator:
    """The program wrk at `path`, with at most `threads` threads."""

    path: str
    threads: int

    @property
    def name(self) -> str:
        """Its name and version, for reports."""
        output = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=False).stdout
        return " ".join(output.split()[:2]) or "wrk"

    def closed(self, endpoint: Endpoint, load: Load, clients: int, seconds: float) -> LoadResult:
        """Keep `clients` requests open for `seconds`, rounded to whole ones, 1 at least. Raises GeneratorError."""
        threads = threads_for(clients, self.threads, len(endpoint.each))
        with tempfile.TemporaryDirectory(prefix="wrk-") as name:
            folder = Path(name)
            count = write_bodies(folder, load.bodies, threads)
            script = folder / "load.lua"
            script.write_text(_script(folder, count, threads, endpoint))
            command = [self.path, "-t", str(threads), "-c", str(clients), "-d", f"{max(1, round(seconds))}s"]
            command += ["--timeout", f"{TIMEOUT_S}s", "-s", str(script)]
            for key, value in load.headers.items():
                command += ["-H", f"{key}: {value}"]
            cpu_seconds = _run([*command, endpoint.url])
            return replace(_counted(folder / "out.json", self.name, cpu_seconds), threads=threads)


def find(asked: str | None) -> str | None:
    """The path of wrk: `asked`, else from the PATH; None if there is none. Raises ValueError for a wrong `asked`."""
    if asked is None:
        return shutil.which("wrk")
    found = shutil.which(asked)
    if found is None:
        raise ValueError(f"--wrk {asked}: there is no such program. On Debian and Ubuntu: apt install wrk")
    return found


def threads_for(clients: int, most: int, servers: int = 1) -> int:
    """The largest number of threads that divides the clients evenly: wrk would round down.

    A thread asks one server, so it is a multiple of `servers`, and at least that. Raises GeneratorError if the
    clients are not a multiple of `servers` too.
    """
    if clients % servers:
        raise GeneratorError(f"{clients} clients cannot be spread evenly over {servers} servers")
    found = range(servers, max(servers, min(clients, most)) + 1, servers)
    return max(threads for threads in found if clients % threads == 0)


def write_bodies(folder: Path, bodies: Sequence[bytes], threads: int) -> int:
    """Write files 1, 2, ... into `folder`, as many as fit into Lua's memory, and return how many.

    Raises GeneratorError if none fits.
    """
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


def _script(folder: Path, count: int, threads: int, endpoint: Endpoint) -> str:
    return SCRIPT.substitute(
        folder=_quoted(str(folder)),
        count=count,
        threads=threads,
        out=_quoted(str(folder / "out.json")),
        servers=", ".join(map(_server, endpoint.each)),
    )


def _server(endpoint: Endpoint) -> str:
    """A server as a table of Lua."""
    parts = urlsplit(endpoint.url)
    path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    headers = {"Host": parts.netloc, **endpoint.headers}
    fields = {"host": _quoted(parts.hostname or ""), "port": _quoted(str(parts.port or 80)), "path": _quoted(path)}
    fields["headers"] = f"{{ {', '.join(f'[{_quoted(key)}] = {_quoted(value)}' for key, value in headers.items())} }}"
    return f"{{ {', '.join(f'{key} = {value}' for key, value in fields.items())} }}"


def _quoted(text: str) -> str:
    """A string of Lua, every byte by its number."""
    return '"' + "".join(f"\\{byte:03d}" for byte in text.encode()) + '"'


def _run(command: Sequence[str]) -> float:
    """Run wrk to its end, and return its CPU seconds. It is ended if this process is interrupted."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ) as process:
        try:
            _, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise GeneratorError(f"wrk failed with exit status {process.returncode}: {errors.decode()[-500:].strip()}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _counted(out: Path, name: str, cpu_seconds: float) -> LoadResult:
    if not out.is_file():
        raise GeneratorError("wrk wrote no figures: its Lua script failed")
    found = json.loads(out.read_text())
    failures = {key: found[key] for key in ("connect", "read", "write", "timeout") if found[key]}
    quantiles = ("p50", "p90", "p99", "p999", "max") if found["statuses"] else ()
    latency_ms = {key: found[key] / 1e3 for key in quantiles}
    messages = {status: message_of(bytes.fromhex(body)) for status, body in found["bodies"].items()}
    return LoadResult(name, found["seconds"], found["statuses"], failures, latency_ms, cpu_seconds, messages=messages)
