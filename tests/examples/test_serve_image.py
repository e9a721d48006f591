"""The steps of examples/serve/Dockerfile, in a fresh environment; needs the package registry."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.served import Client, running_server

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "examples/serve/Dockerfile").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_image_serves_without_torch(trained, tmp_path, monkeypatch):
    for names in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in shlex.split(names):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tmp_path / name)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    monkeypatch.setenv("PATH", f"{environment / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    for step in re.findall(r"^RUN (.*)$", DOCKERFILE, re.MULTILINE):
        if "useradd" not in step:
            subprocess.run(["sh", "-c", step], check=True)
    [start] = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    python = environment / "bin" / "python"
    with running_server(*json.loads(start)[2:], trained[0], python=python) as (_, port):
        client = Client(port)
        assert client.predict("abc")["predictions"][0]["output"] == "ABC"
        assert client.get("/v1/models")["models"][0]["name"] == "model"
        assert client.get("/ready") == {"status": "ready"}
        status, answer = client.post("/v1/predict", {"source": "abc", "alignment": True})
        assert (status, answer["error"]["where"]) == (422, "decoding")
        assert "needs torch, which is not installed" in answer["error"]["message"]
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([python, "-c", "import torch"], check=True, capture_output=True)
