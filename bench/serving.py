"""What the benchmarks of whole clusters share: one of real processes, and light clients of it.

The clients stand on the same cores as the engine, so they do little: messages are counted, and the
last one tells how many tokens came.
"""
import concurrent.futures
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
try:
    from cluster import BIN, Cluster  # noqa: F401  (for the programs that import this)
except ModuleNotFoundError as error:
    sys.exit(f"the Python package '{error.name}' is missing: run ./test once, which sets up .venv")


class BenchError(Exception):
    """What went wrong."""


def verdict(failures):
    """Prints what --check found; the exit code."""
    for failure in failures:
        print("FAILED: " + failure)
    print("check: " + ("failed" if failures else "passed"))
    return 1 if failures else 0


def model_path():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return pathlib.Path(os.environ.get("COGUMI_MODEL") or
                        cache / "cogumi/models/SmolLM2-135M-Instruct.Q4_1.gguf")


def prompt_tokens(seed, count=16):
    """Token ids that need not mean anything, as `cogumi bench` has them; others for another seed."""
    state, ids = seed * 2654435761 + 1, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        ids.append(256 + (state >> 33) % (49152 - 256))
    return ids


class Stream:
    """When an answer's first token and its end came."""

    def __init__(self, first, end, tokens):
        self.first, self.end, self.tokens = first, end, tokens


class GrpcDoor:
    """Streams through the gateway's gRPC interface, by a client that takes little of the cores."""
    name = "gRPC"

    def __init__(self, cluster):
        self._client = subprocess.Popen([BIN / "cogumi-door-client", cluster.grpc], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._client.stdin.close()
        self._client.wait()
        self._client.stdout.close()

    def generate(self, seeds, tokens):
        """Streams of the prompts of these seeds, asked at once."""
        prompts = [",".join(map(str, prompt_tokens(seed))) for seed in seeds]
        self._client.stdin.write(" ".join([str(tokens), *prompts]) + "\n")
        self._client.stdin.flush()
        line = self._client.stdout.readline()
        if not line:
            raise BenchError("cogumi-door-client ended")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.name}: {answer['error']}: {answer['message']}")
        return [Stream(**stream) for stream in answer]


class SseDoor:
    """Streams of server-sent events through the OpenAI-compatible interface."""
    name = "SSE"

    def __init__(self, cluster):
        self._host, port = cluster.http.rsplit(":", 1)
        self._port = int(port)

    def generate(self, seeds, tokens):
        """Streams of the prompts of these seeds, asked at once."""
        with concurrent.futures.ThreadPoolExecutor(len(seeds)) as pool:
            return list(pool.map(lambda seed: self._stream(seed, tokens), seeds))

    def _stream(self, seed, tokens):
        body = json.dumps({
            "prompt": prompt_tokens(seed), "max_tokens": tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "ignore_eos": True}).encode()
        with socket.create_connection((self._host, self._port), timeout=300) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            first, received = 0, bytearray()
            while b"data: [DONE]" not in received[-64:]:
                data = connection.recv(65536)
                if not data:
                    raise BenchError("the stream ended without [DONE]: "
                                     + received[-300:].decode(errors="replace"))
                received += data
                if not first and b"data: " in received:
                    first = time.monotonic()
            end = time.monotonic()
        usage = received.rsplit(b'"completion_tokens":', 1)
        if len(usage) != 2:
            raise BenchError("the stream told no usage: "
                             + received[-300:].decode(errors="replace"))
        return Stream(first, end, int(usage[1].split(b",")[0].split(b"}")[0]))


def one_stream(door, seed, tokens):
    """Tokens a second after the first one."""
    [stream] = door.generate([seed], tokens)
    if stream.tokens != tokens:
        raise BenchError(f"{door.name}: {stream.tokens} tokens instead of {tokens}")
    return (tokens - 1) / (stream.end - stream.first)


def many_streams(door, seed, tokens, streams):
    """Tokens a second of all streams together, prompts included."""
    start = time.monotonic()
    answers = door.generate(range(seed, seed + streams), tokens)
    return sum(a.tokens for a in answers) / (max(a.end for a in answers) - start)
