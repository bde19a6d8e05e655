"""What bench/door and bench/startup share: a cluster of real processes and light clients of it.

The clients stand on the same cores as the engine, so they do little: messages are counted, not
parsed; the last one tells how many tokens came.
"""
import concurrent.futures
import importlib
import json
import os
import pathlib
import socket
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
try:
    import grpc
    import grpc_tools.protoc
    from cluster import BIN, Cluster  # noqa: F401  (for the programs that import this)
except ModuleNotFoundError as error:
    sys.exit(f"the Python package '{error.name}' is missing: run ./test once, which sets up .venv")

END_TOKENS = (0, 2)  # of the default model: never chosen, so that every answer has full length


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


def load_stubs(folder):
    """The gateway's messages, generated from the contracts into `folder`."""
    protos = [str(ROOT / "proto/cogumi/v1" / f"{name}.proto")
              for name in ("common", "router", "gateway")]
    if grpc_tools.protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={folder}",
                               *protos]) != 0:
        raise BenchError("protoc could not read proto/cogumi/v1")
    sys.path.insert(0, str(folder))
    return importlib.import_module("cogumi.v1.gateway_pb2")


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
    """Streams through the gateway's gRPC interface."""
    name = "gRPC"

    def __init__(self, cluster, stubs):
        self._stubs = stubs
        self._channel = grpc.insecure_channel(cluster.grpc)
        self._call = self._channel.unary_stream("/cogumi.v1.GatewayService/Complete")

    def generate(self, seed, tokens):
        request = self._stubs.CompleteRequest()
        request.tokens.ids.extend(prompt_tokens(seed))
        request.sampling.temperature = 0
        request.sampling.max_tokens = tokens
        request.sampling.ignore_eos = True
        first, last = 0, b""
        for message in self._call(request.SerializeToString(), timeout=300):
            first = first or time.monotonic()
            last = message
        end = time.monotonic()
        response = self._stubs.CompleteResponse.FromString(last)
        return Stream(first, end, response.complete.usage.completion_tokens)


class SseDoor:
    """Streams of server-sent events through the OpenAI-compatible interface."""
    name = "SSE"

    def __init__(self, cluster, _):
        self._host, port = cluster.http.rsplit(":", 1)
        self._port = int(port)

    def generate(self, seed, tokens):
        body = json.dumps({
            "prompt": prompt_tokens(seed), "max_tokens": tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
            "logit_bias": {str(token): -100 for token in END_TOKENS}}).encode()
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


def first_answer(door, seconds=20):
    """Asks until an answer comes: the gateway may still be connecting to the decoder."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return door.generate(0, 2)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise BenchError(f"{door.name}: {error.code().name}: {error.details()}") from error
            time.sleep(0.01)


def one_stream(door, seed, tokens):
    """Tokens a second after the first one."""
    stream = door.generate(seed, tokens)
    if stream.tokens != tokens:
        raise BenchError(f"{door.name}: {stream.tokens} tokens instead of {tokens}")
    return (tokens - 1) / (stream.end - stream.first)


def many_streams(door, seed, tokens, streams):
    """Tokens a second of all streams together, prompts included."""
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        start = time.monotonic()
        answers = list(pool.map(lambda i: door.generate(seed + i, tokens), range(streams)))
    return sum(a.tokens for a in answers) / (max(a.end for a in answers) - start)
