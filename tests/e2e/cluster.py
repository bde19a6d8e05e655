"""A cluster of four real processes under `cogumi serve --split`, and the ways to look at it."""
import contextlib
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "build" / "bin"
SERVICES = ("gateway", "router", "decoder", "modifiers")
READY_SECONDS = 60

# Series of clusters that have ended: {service: {series name: {labels: value}}}. The last test asks
# whether everything that is registered has moved in one of them.
MOVED: dict[str, dict[str, dict[str, float]]] = {}

SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? (\S+)$")


def eventually(condition, what, seconds=30.0):
    """The first true value of condition(), polled; fails with `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.01)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def parse_metrics(text):
    series = {}
    for line in text.splitlines():
        match = SAMPLE.match(line)
        if match:
            name, labels, value = match.groups()
            series.setdefault(name, {})[labels or ""] = float(value)
    return series


def alive(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


class Cluster:
    def __init__(self, folder, *flags, environment=None, binaries=BIN):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Nothing of this cluster is anybody else's: neither its state nor its ports.
        self.environment = {**os.environ, "COGUMI_STATE_DIR": str(self.folder / "state"),
                            **(environment or {})}
        for service in ("router", "decoder", "modifiers"):
            self.environment.setdefault(f"COGUMI_{service.upper()}_METRICS", "127.0.0.1:0")
        self.grpc = f"127.0.0.1:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}"
        self.log_path = self.folder / "cluster.log"
        self.log = open(self.log_path, "ab")
        self.process = subprocess.Popen(
            [str(binaries / "cogumi"), "serve", "--split", "--json", "--gateway.listen", self.grpc,
             "--gateway.http", self.http, *flags],
            stdout=subprocess.PIPE, stderr=self.log, env=self.environment)
        # A server that never gets ready must not hold the test up for ever.
        readable, _, _ = select.select([self.process.stdout], [], [], READY_SECONDS)
        line = self.process.stdout.readline() if readable else b""
        if not line.startswith(b"{") or b'"error"' in line:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the cluster did not start: {line!r}\n{self.log_text()}")
        self.started = json.loads(line)

    @property
    def url(self):
        return f"http://{self.http}"

    def log_text(self):
        self.log.flush()
        return self.log_path.read_text(errors="replace")[-8000:]

    def services(self):
        """What `cogumi ps --json` says about each service, by name."""
        shown = subprocess.run([str(BIN / "cogumi"), "ps", "--json"], env=self.environment,
                               check=True, capture_output=True, text=True).stdout
        clusters = [c for c in json.loads(shown)["clusters"]
                    if c["supervisor"] == self.process.pid]
        return {s["service"]: s for s in clusters[0]["services"]} if clusters else {}

    def pid(self, service):
        return self.services()[service]["pid"]

    def address(self, service):
        """For gRPC's Python package, which knows unix: addresses as well."""
        return self.services()[service]["address"]

    def metrics(self, service):
        if service == "gateway":
            url = f"{self.url}/metrics"
        else:
            url = f"http://{self.services()[service]['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            return parse_metrics(response.read().decode())

    def value(self, service, name, **labels):
        """Sum over the series of this name whose labels include the given ones."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(value for text, value in self.metrics(service).get(name, {}).items()
                   if all(part in text for part in wanted))

    def idle(self):
        """True when the decoder has no request and no page in use."""
        series = self.metrics("decoder")
        used = sum(v for k, v in series["cogumi_kv_pages"].items() if "used" in k)
        return (sum(series["vllm:num_requests_running"].values()) == 0
                and sum(series["vllm:num_requests_waiting"].values()) == 0 and used == 0)

    def await_idle(self):
        eventually(self.idle, lambda: f"an idle decoder: {self.metrics('decoder')}")

    def remember_metrics(self):
        for service in SERVICES:
            with contextlib.suppress(OSError, KeyError):
                store = MOVED.setdefault(service, {})
                for name, by_labels in self.metrics(service).items():
                    kept = store.setdefault(name, {})
                    for labels, value in by_labels.items():
                        kept[labels] = max(value, kept.get(labels, 0))

    def terminate(self):
        """SIGTERM to the supervisor, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self):
        if self.process.poll() is None:
            self.remember_metrics()
            self.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the cluster did not drain:\n{self.log_text()}")
        self.process.stdout.close()
        self.log.close()
        return self.process.returncode
