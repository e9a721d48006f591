"""Compares a server with prediction in the process, in turns, in one run on this machine.

python benchmarks/serving.py MODEL SOURCES [--rounds 5] [--rows 2000] [--clients 64]

Prints sentences/s of `predict` on one list and of the server with so many clients that send one
sentence at a time, the time of the processor that a sentence takes each of them, the median time
of a single request and of a single call, and the server's memory. The clients are those of the
load generator `wrk` (Debian's package of that name); they share the processor with the server.
"""

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from machine import describe_machine
from tables import show

from dragoman import Predictor

_SINGLE = 300  # requests and calls for the medians
_SCRIPT = """local bodies, i = {}, 0
for line in io.lines("BODIES") do bodies[#bodies + 1] = line end
function request()
  i = i % #bodies + 1
  return wrk.format("POST", "/v1/predict", nil, bodies[i])
end
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "sources", type=Path, help="a source on each line, or a TSV whose first column they are"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--workers", default="1", help="processes of the server")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to it too")
    options = parser.parse_args()
    lines = [row.partition("\t")[0] for row in options.sources.read_text("utf-8").splitlines()]
    sources = (lines * (options.rows // len(lines) + 1))[: options.rows]
    command = [sys.executable, "-m", "dragoman", "serve", str(options.model), "--port", "0"]
    command += ["--quantization", options.quantization, "--workers", options.workers]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            measure(server, options, sources)
        finally:
            server.send_signal(signal.SIGTERM)
    print(f"load of the machine: {os.getloadavg()[0]:.1f}; exit code {server.returncode}")


def measure(
    server: subprocess.Popen[str], options: argparse.Namespace, sources: Sequence[str]
) -> None:
    """Measure a server that has just been started, and print."""
    assert server.stderr is not None
    found = re.search(r":(\d+)$", server.stderr.readline().strip())
    assert found, "the server did not start"
    port, folder, clients = int(found[1]), options.model, options.clients
    model = Predictor.load(folder, quantization=options.quantization)
    pairs = zip(ask(port, sources), model.predict(sources), strict=True)
    differing = sum(one != other for one, other in pairs)
    lists, served, cpu = [], [], []
    for turn in range(-1, options.rounds):  # the first warms up
        before = read_clocks(server.pid)
        model.predict(sources)
        middle = read_clocks(server.pid)
        requests, per_s = send_load(port, sources, clients, middle[0] - before[0])
        after = read_clocks(server.pid)
        if turn >= 0:
            lists.append(len(sources) / (middle[0] - before[0]))
            served.append(per_s)
            spent = (middle[1] - before[1]) / len(sources), (after[2] - middle[2]) / requests
            cpu.append([1e3 * each for each in spent])
    single, calls = time_singles(port, model, sources[:_SINGLE])
    statuses = [Path(f"/proc/{pid}/status").read_text("utf-8") for pid in list_pids(server.pid)]
    print(json.dumps(describe_machine(("dragoman", "ctranslate2", "uvicorn", "fastapi"))))
    print(f"{folder}: {model.engine.quantization}; {differing} of {len(sources)} outputs differ")
    throughput = [statistics.median(each) for each in (lists, served)]
    ratio = statistics.median(b / a for a, b in zip(lists, served, strict=True))
    share = f"{throughput[1]:,.0f} ({ratio:.0%})"
    ratio = statistics.median(a / b for a, b in cpu)
    parts = [statistics.median(each) for each in zip(*cpu, strict=True)]
    peaks_kib = [int(size) for size in re.findall(r"VmHWM:\s+(\d+)", "".join(statuses))]
    figures = {
        "`predict` on one list, sentences/s": f"{throughput[0]:,.0f}",
        f"{clients} clients": share,
        "processor for a sentence: `predict`, ms": f"{parts[0]:.3f}",
        "server, ms": f"{parts[1]:.3f} ({ratio:.0%})",
        "one request, ms": f"{1e3 * single:.2f}",
        "one call, ms": f"{1e3 * calls:.2f}",
        "memory, MiB": f"{sum(peaks_kib) / 1024:.0f}",
    }
    show(list(figures), [list(figures.values())], options.json)


def list_pids(server: int) -> list[int]:
    """Return the process of the server, and its workers."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text("utf-8").split()
    return [server, *map(int, children)]


def read_clocks(server: int) -> tuple[float, float, float]:
    """Return the time, and the processor time of this process and of the server, in s."""
    ticks = 0
    for pid in list_pids(server):
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return time.perf_counter(), time.process_time(), ticks / os.sysconf("SC_CLK_TCK")


def send_load(port: int, sources: Sequence[str], clients: int, seconds: float) -> tuple[int, float]:
    """Return the number of requests, and those a second, of a load of one source each."""
    with tempfile.TemporaryDirectory() as folder:
        bodies, script = Path(folder, "bodies"), Path(folder, "script.lua")
        bodies.write_text("".join(json.dumps({"source": one}) + "\n" for one in sources))
        script.write_text(_SCRIPT.replace("BODIES", str(bodies)))
        command = ["wrk", "-t1", f"-c{clients}", f"-d{max(2, round(seconds))}", "-s", str(script)]
        url = f"http://127.0.0.1:{port}"
        shown = subprocess.run([*command, url], check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in shown, shown
    number, per_s = re.search(r"(\d+) requests in", shown), re.search(r"/sec: +([\d.]+)", shown)
    assert number, shown
    assert per_s, shown
    return int(number[1]), float(per_s[1])


def time_singles(port: int, model: Predictor, sources: Sequence[str]) -> tuple[float, float]:
    """Return the median times of a request and of a call in this process, in s, in turns."""
    # One thread is the faster way for a small model, and what the server takes.
    options = {**model.options, "threads": 1}
    model = Predictor.load(model.folders, **options)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    requests, calls = [], []
    for source in sources:
        body = json.dumps({"source": source})
        start = time.perf_counter()
        connection.request("POST", "/v1/predict", body)
        json.load(connection.getresponse())
        middle = time.perf_counter()
        model.predict([source])
        requests.append(middle - start)
        calls.append(time.perf_counter() - middle)
    connection.close()
    return statistics.median(requests), statistics.median(calls)


def ask(port: int, sources: Sequence[str]) -> list[str]:
    """Return the outputs of sources that are sent at once."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/predict", json.dumps({"source": sources}))
    outputs = [one["output"] for one in json.load(connection.getresponse())["predictions"]]
    connection.close()
    return outputs


if __name__ == "__main__":
    main()
