"""HTTP load from a process of its own: wrk, which costs a few microseconds a request and so leaves the cores to what is measured."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """
local count = {count}
local bodies = {{}}
for i = 0, count - 1 do
  local file = io.open("{folder}/body-" .. i)
  bodies[i] = file:read("*a")
  file:close()
end
local n = 0
request = function()
  n = (n + 1) % count
  return wrk.format("POST", "{path}", {{["Authorization"] = "Bearer {token}", ["Content-Type"] = "application/json"}}, bodies[n])
end
done = function(summary, latency, requests)
  io.write(string.format('LOAD {{"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50": %.3f, "p95": %.3f, "p99": %.3f}}\\n',
    summary.requests, summary.duration / 1e6, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What a run of load came to; percentiles in milliseconds."""

    requests: int
    seconds: float
    p50: float
    p95: float
    p99: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def available() -> bool:
    return shutil.which("wrk") is not None


def post(url: str, path: str, token: str, bodies: Sequence[bytes], clients: int, seconds: float, folder: Path) -> Load:
    """Send the bodies in turn from ``clients`` connections, each its next one when the last was answered."""
    for number, body in enumerate(bodies):
        (folder / f"body-{number}").write_bytes(body)
    return _run(url, _SCRIPT.format(count=len(bodies), folder=folder, path=path, token=token), clients, seconds, folder)


def get(url: str, paths: Sequence[str], token: str, clients: int, seconds: float, folder: Path) -> Load:
    """The same with GET, of the paths in turn."""
    listed = ", ".join(json.dumps(path) for path in paths)
    text = _SCRIPT[_SCRIPT.index("done = ") :].replace("{{", "{").replace("}}", "}")
    head = f"""local paths = {{{listed}}}
local n = 0
request = function()
  n = n % #paths + 1
  return wrk.format("GET", paths[n], {{["Authorization"] = "Bearer {token}"}})
end
"""
    return _run(url, head + text, clients, seconds, folder)


def _run(url: str, text: str, clients: int, seconds: float, folder: Path) -> Load:
    script = folder / "load.lua"
    script.write_text(text)
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", str(script), url]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    found = re.search(r"^LOAD (.*)$", said, re.MULTILINE)
    assert found is not None, said
    told = json.loads(found[1])
    assert not told["refused"], f"{told['refused']} requests were refused:\n{said}"
    assert not told["broken"], said
    return Load(told["requests"], told["seconds"], told["p50"], told["p95"], told["p99"])
