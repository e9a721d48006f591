"""Compares a server with prediction in the process, in turns, in one run on this machine.

python benchmarks/serving.py MODEL SOURCES [--rounds 3] [--rows 4000] [--clients 64]

Prints sentences/s of `predict` on one list and of the server with so many clients that send one
sentence at a time, the time of the processor that a sentence takes each of them, the median time
of a single request and of a single call, and the server's memory. The clients share the processor
with the server.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from machine import describe_machine

from dragoman import Predictor

_SINGLE = 300  # requests and calls for the medians


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("sources", type=Path, help="a source on each line")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    lines = options.sources.read_text("utf-8").splitlines()
    sources = (lines * (options.rows // len(lines) + 1))[: options.rows]
    command = [sys.executable, "-m", "dragoman", "serve", str(options.model), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        found = re.search(r":(\d+)$", server.stderr.readline().strip())
        assert found, "the server did not start"
        port, model = int(found[1]), Predictor.load(options.model)
        lists, served, cpu = [], [], []
        for turn in range(-1, options.rounds):  # the first warms up
            clocks = [read_clocks(server.pid)]
            expected = model.predict(sources)
            clocks.append(read_clocks(server.pid))
            answers = asyncio.run(send_all(port, sources, options.clients))
            clocks.append(read_clocks(server.pid))
            assert answers == expected, "the server's outputs differ"
            if turn >= 0:
                start, middle, end = clocks
                lists.append(len(sources) / (middle[0] - start[0]))
                served.append(len(sources) / (end[0] - middle[0]))
                spent = middle[1] - start[1], end[2] - middle[2], end[1] - middle[1]
                cpu.append([1e3 * each / len(sources) for each in spent])
        single, calls = asyncio.run(time_singles(port, options.model, sources[:_SINGLE]))
        status = Path(f"/proc/{server.pid}/status").read_text("utf-8")
        server.send_signal(signal.SIGTERM)
    peak_kib = re.search(r"VmHWM:\s+(\d+)", status)
    ratio = statistics.median(b / a for a, b in zip(lists, served, strict=True))
    print(json.dumps(describe_machine(("dragoman", "ctranslate2", "uvicorn", "fastapi"))))
    print(f"predict on one list: {statistics.median(lists):,.0f} sentences/s")
    print(f"{options.clients} clients: {statistics.median(served):,.0f} sentences/s, {ratio:.0%}")
    parts = [statistics.median(each) for each in zip(*cpu, strict=True)]
    print(
        "processor for a sentence: predict {:.2f}, server {:.2f}, client {:.2f} ms".format(*parts)
    )
    print(f"one request: {1e3 * single:.2f} ms; one call in the process: {1e3 * calls:.2f} ms")
    if peak_kib:
        print(f"memory of the server: {int(peak_kib[1]) / 1024:.0f} MiB")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}; exit code {server.returncode}")


def read_clocks(server: int) -> tuple[float, float, float]:
    """Return the time, and the processor time of this process and of the server, in s."""
    fields = Path(f"/proc/{server}/stat").read_text("utf-8").rpartition(")")[2].split()
    spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
    return time.perf_counter(), time.process_time(), spent


async def send_all(port: int, sources: Sequence[str], clients: int) -> list[str]:
    """Return the output of each source; each client sends one and waits for its answer."""
    outputs = [""] * len(sources)
    waiting = iter(range(len(sources)))

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in waiting:
            outputs[i] = await ask(reader, writer, sources[i])
        writer.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    return outputs


async def time_singles(port: int, folder: Path, sources: Sequence[str]) -> tuple[float, float]:
    """Return the median times of a request and of a call in this process, in s, in turns."""
    # One thread is the faster way for a small model, and what the server takes.
    model = Predictor.load(folder, threads=1)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    requests, calls = [], []
    for source in sources:
        start = time.perf_counter()
        await ask(reader, writer, source)
        middle = time.perf_counter()
        model.predict([source])
        requests.append(middle - start)
        calls.append(time.perf_counter() - middle)
    writer.close()
    return statistics.median(requests), statistics.median(calls)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> str:
    """Return the output of a source: HTTP by hand, to take little of the processor."""
    body = json.dumps({"source": source}).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", answer)
    assert length is not None
    content = json.loads(await reader.readexactly(int(length[1])))
    output: str = content["predictions"][0]["output"]
    return output


if __name__ == "__main__":
    main()
