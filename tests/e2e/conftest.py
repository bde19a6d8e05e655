"""Fixtures of the end-to-end tests: real processes, the real model, official clients."""
import importlib
import json
import os
import pathlib
import sys

import grpc
import grpc_tools.protoc
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from cluster import BIN, ROOT, Cluster  # noqa: E402

PROTOS = ("common", "decoder", "gateway", "modifiers", "router")


def model_path():
    named = os.environ.get("COGUMI_MODEL")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ["HOME"], ".cache")
    return pathlib.Path(named or os.path.join(
        cache, "cogumi/models/SmolLM2-135M-Instruct.Q4_1.gguf"))


@pytest.fixture(scope="session", autouse=True)
def what_the_tests_need():
    """Missing things are failures with a name, never skips."""
    assert model_path().is_file(), f"no model at {model_path()}; ./test fetches it"
    for name in ("cogumi", "cogumi-gateway", "cogumi-router", "cogumi-decoder",
                 "cogumi-modifiers"):
        assert (BIN / name).is_file(), f"{BIN / name} is not built; ./test e2e builds it"


@pytest.fixture(scope="session")
def pb(tmp_path_factory):
    """Stubs as any client would make them: from the contracts, by grpcio-tools."""
    out = tmp_path_factory.mktemp("stubs")
    root = ROOT / "proto"
    code = grpc_tools.protoc.main(
        ["protoc", f"-I{root}", f"--python_out={out}", f"--grpc_python_out={out}",
         *[str(root / "cogumi/v1" / f"{name}.proto") for name in PROTOS]])
    assert code == 0
    sys.path.insert(0, str(out))

    class Modules:
        pass

    modules = Modules()
    for name in PROTOS:
        setattr(modules, name, importlib.import_module(f"cogumi.v1.{name}_pb2"))
        setattr(modules, f"{name}_grpc", importlib.import_module(f"cogumi.v1.{name}_pb2_grpc"))
    return modules


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The cluster most tests share; nobody breaks it."""
    running = Cluster(tmp_path_factory.mktemp("cluster"))
    yield running
    assert running.stop() == 0, running.log_text()


@pytest.fixture
def own_cluster(tmp_path):
    """Makes clusters with options of their own, for tests that break things."""
    made = []

    def make(*flags, **options):
        made.append(Cluster(tmp_path / f"cluster{len(made)}", *flags, **options))
        return made[-1]

    yield make
    for running in made:
        running.stop()


class Client:
    """The gateway through the official gRPC package."""

    def __init__(self, pb, address, token=None):
        self.pb = pb
        self.channel = grpc.insecure_channel(address)
        self.stub = pb.gateway_grpc.GatewayServiceStub(self.channel)
        self.metadata = [("authorization", f"Bearer {token}")] if token else []

    def request(self, text, session="", system="", **sampling):
        pb = self.pb
        messages = []
        if system:
            messages.append(pb.common.Message(role=pb.common.ROLE_SYSTEM, content=system))
        messages.append(pb.common.Message(role=pb.common.ROLE_USER, content=text))
        sampling.setdefault("temperature", 0)
        return pb.gateway.ChatRequest(messages=messages, session_id=session,
                                      sampling=pb.common.SamplingParams(**sampling))

    def chat(self, request, timeout=60, metadata=()):
        return self.stub.Chat(request, timeout=timeout, metadata=[*self.metadata, *metadata])

    def complete(self, timeout=60, **fields):
        return self.stub.Complete(self.pb.gateway.CompleteRequest(**fields), timeout=timeout,
                                  metadata=self.metadata)

    def answer(self, request, **kwargs):
        """(text, token ids, the last message); checks the shape of the stream."""
        return collect(self.chat(request, **kwargs))

    def ask(self, text, **kwargs):
        return self.answer(self.request(text, **kwargs))[0]

    def turns(self, session):
        return self.stub.GetSession(self.pb.gateway.GetSessionRequest(session_id=session),
                                    metadata=self.metadata, timeout=10).turns


def collect(stream):
    events = list(stream)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[-1] == "complete" and set(kinds[:-1]) <= {"chunk"}, kinds
    text = "".join(event.chunk.text for event in events[:-1])
    ids = [token for event in events[:-1] for token in event.chunk.token_ids]
    return text, ids, events[-1].complete


@pytest.fixture
def client(pb, cluster):
    return Client(pb, cluster.grpc)


@pytest.fixture
def connect(pb):
    return lambda cluster, token=None: Client(pb, cluster.grpc, token)


@pytest.fixture(scope="session")
def golden():
    return json.loads((ROOT / "tests/support/golden.json").read_text())
