"""OpenVINO GenAI as a peer: its own Python environment in the cache folder, and one process that
keeps the model loaded and measures when it is asked."""
import json
import pathlib
import subprocess

from llama_cpp import PeerError
from python_environment import environment

VERSION = "2026.4.1"
HERE = pathlib.Path(__file__).resolve().parent
REQUIREMENTS = HERE.parents[1] / "tools" / "setup" / "requirements-openvino.txt"


class OpenVino:
    """Prefill of a GGUF file, in tokens a second until the first token."""

    def __init__(self, cache, model, threads, say):
        python = environment(pathlib.Path(cache) / "peers" / f"openvino-{VERSION}", REQUIREMENTS,
                             say, "OpenVINO GenAI (60 MB)")
        self._process = subprocess.Popen(
            [str(python), str(HERE / "openvino_worker.py"), str(model), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._read()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            error = self._process.stderr.read().splitlines()[-4:]
            raise PeerError("OpenVINO GenAI ended:\n  " + "\n  ".join(error))
        return json.loads(line)

    def prefill(self, tokens):
        self._process.stdin.write(f"{tokens}\n")
        self._process.stdin.flush()
        return self._read()["tokens_per_second"]

    def close(self):
        self._process.stdin.close()
        self._process.wait()
