"""Adapters: the catalogue through the command line and gRPC, and answers with them through both
doors, across kills and wrong bytes."""
import concurrent.futures
import hashlib
import json
import os
import signal
import subprocess
import sys

import grpc
import openai
import pytest
from cluster import BIN, ROOT, eventually

sys.path.insert(0, str(ROOT / "tests/services/modifiers"))
sys.path.insert(0, str(ROOT / "tests/support"))
import peft_adapters  # noqa: E402
import tiny_models  # noqa: E402
from make_adapter import Base, write_adapter  # noqa: E402

QUESTION = "What is the capital of France?"


def write_lora(folder, rank=8, seed=1):
    """Random weights on all linears of the default model: strong enough to change answers."""
    adapter = peft_adapters.random_adapter(peft_adapters.BaseShape(), rank, kind="F16", seed=seed,
                                           strength=1.0)
    return peft_adapters.write(folder, adapter)


def cogumi(cluster, *words, check=True):
    result = subprocess.run([str(BIN / "cogumi"), *words, "--json"], env=cluster.environment,
                            capture_output=True, text=True, timeout=60)
    assert not check or result.returncode == 0, (words, result.stdout, result.stderr)
    return json.loads(result.stdout)


def test_an_adapter_from_load_to_removal(own_cluster, pb, tmp_path):
    cluster = own_cluster()
    folder = write_adapter(tmp_path / "tiny-code", rank=1)
    with grpc.insecure_channel(cluster.address("modifiers")) as channel:
        stub = pb.modifiers_grpc.ModifierServiceStub(channel)
        watch = stub.Watch(pb.modifiers.WatchRequest(), timeout=60)
        assert next(watch).type == pb.modifiers.CHANGE_TYPE_SYNCED

        loaded = cogumi(cluster, "adapter", "load", str(folder))
        assert loaded["name"] == "tiny-code" and loaded["rank"] == 1 and not loaded["unchanged"]
        change = next(watch)
        assert change.type == pb.modifiers.CHANGE_TYPE_ADDED
        assert change.adapter.digest == loaded["digest"]
        assert cogumi(cluster, "adapter", "load", str(folder))["unchanged"]

        # The bytes by digest are the bytes of the folder.
        files = {}
        for piece in stub.Fetch(pb.modifiers.FetchRequest(digest=loaded["digest"]), timeout=60):
            assert len(piece.data) <= 1 << 20 and piece.offset == len(files.get(piece.file, b""))
            files[piece.file] = files.get(piece.file, b"") + piece.data
        assert files == {name: (folder / name).read_bytes() for name in files} and len(files) == 3
        listing = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n"
                          for name in sorted(files))
        assert hashlib.sha256(listing.encode()).hexdigest() == loaded["digest"]

        # Broken weights are refused by file.
        broken = write_adapter(tmp_path / "broken", rank=1)
        weights = broken / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        refused = cogumi(cluster, "adapter", "load", str(broken), check=False)
        assert "adapter_model.safetensors" in refused["error"]["message"]

        # It survives a kill.
        victim = cluster.pid("modifiers")
        cluster.remember_metrics()
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(grpc.RpcError):
            next(watch)
    eventually(lambda: cluster.pid("modifiers") != victim, "a new process", 60)
    listed = cogumi(cluster, "adapter", "list")["adapters"]
    assert [(a["name"], a["digest"]) for a in listed] == [("tiny-code", loaded["digest"])]
    assert cogumi(cluster, "adapter", "show", "tiny-code")["digest"] == loaded["digest"]

    assert cogumi(cluster, "adapter", "rm", "tiny-code")["removed"]["name"] == "tiny-code"
    assert cogumi(cluster, "adapter", "list")["adapters"] == []
    gone = cogumi(cluster, "adapter", "show", "tiny-code", check=False)
    assert gone["error"]["code"] == "NOT_FOUND"


@pytest.mark.parametrize("split", [[], ["--split"]])
def test_adapters_are_for_the_served_model(tmp_path, split):
    """Neither the default model's digest nor its shape is taken for granted."""
    shape = tiny_models.SHAPES["width48"]
    model = tmp_path / "tiny.gguf"
    tiny_models.write(model, shape)
    right = write_adapter(tmp_path / "right", rank=1, base=Base(
        digest=hashlib.sha256(model.read_bytes()).hexdigest(), layers=shape.layers,
        width=shape.width, queries=shape.heads * shape.head_dim,
        keys=shape.kv_heads * shape.head_dim, inner=shape.hidden))
    wrong = write_adapter(tmp_path / "wrong", rank=1)

    class Tiny:
        environment = {**os.environ, "COGUMI_STATE_DIR": str(tmp_path / "state")}

    flags = [f"--{service}.metrics=" for service in ("router", "decoder", "modifiers")]
    process = subprocess.Popen(
        [str(BIN / "cogumi"), "serve", *split, str(model), "--gateway.listen=127.0.0.1:0",
         "--gateway.http=", *flags], env=Tiny.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == f"serving {model}\n"
        assert cogumi(Tiny, "adapter", "load", str(right))["name"] == "right"
        refused = cogumi(Tiny, "adapter", "load", str(wrong), check=False)
        assert refused["error"]["code"] == "FAILED_PRECONDITION"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_the_catalogue_without_a_cluster(tmp_path):
    """The command starts the one service it needs, over the same state."""
    class Nothing:
        environment = {**os.environ, "COGUMI_STATE_DIR": str(tmp_path / "state")}

    assert cogumi(Nothing, "adapter", "list")["adapters"] == []
    folder = write_adapter(tmp_path / "kept", rank=1)
    cogumi(Nothing, "adapter", "load", str(folder), "other-name")
    assert [a["name"] for a in cogumi(Nothing, "adapter", "list")["adapters"]] == ["other-name"]


@pytest.fixture
def adapted(own_cluster, tmp_path):
    """A cluster with two adapters, and their digests by name."""
    cluster = own_cluster()
    digests = {}
    for seed, name in enumerate(("coder", "poet"), 1):
        folder = write_lora(tmp_path / name, seed=seed)
        digests[name] = cogumi(cluster, "adapter", "load", str(folder))["digest"]
    return cluster, digests


def api_of(cluster):
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0)


def ask(api, model):
    answer = api.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0,
        max_tokens=12)
    assert answer.model == model
    return answer.choices[0].message.content, answer.system_fingerprint


def test_adapters_through_the_openai_door(adapted):
    cluster, digests = adapted
    with api_of(cluster) as api:
        base = api.models.list().data[0].id
        names = [base, f"{base}:coder", f"{base}:poet"]
        eventually(lambda: [m.id for m in api.models.list().data] == names, "both in the list")
        assert api.models.retrieve(names[1]).id == names[1]
        alone = {name: ask(api, name) for name in names}
        texts, fingerprints = zip(*alone.values())
        assert len(set(texts)) == len(set(fingerprints)) == 3, "each adapter changes the answer"
        # Together in one batch each answers as alone.
        with concurrent.futures.ThreadPoolExecutor(9) as pool:
            together = list(pool.map(lambda name: (name, ask(api, name)), names * 3))
        assert all(answer == alone[name] for name, answer in together)
        pieces = list(api.chat.completions.create(
            model=names[2], messages=[{"role": "user", "content": QUESTION}], temperature=0,
            max_tokens=12, stream=True))
        text = "".join(p.choices[0].delta.content or "" for p in pieces)
        assert (text, pieces[-1].system_fingerprint) == alone[names[2]]

        with pytest.raises(openai.NotFoundError, match="nobody"):
            ask(api, f"{base}:nobody")
        with pytest.raises(openai.NotFoundError):
            ask(api, "gpt-99:coder")
        # What is removed is gone for new requests, and from the list.
        cluster.remember_metrics()
        cogumi(cluster, "adapter", "rm", "poet")
        eventually(lambda: len(api.models.list().data) == 2, "one left in the list")
        with pytest.raises(openai.NotFoundError, match="poet"):
            ask(api, names[2])
        assert ask(api, names[1]) == alone[names[1]]
    assert cluster.value("decoder", "cogumi_adapters_resident") == 1


def test_the_receipt_names_the_version(adapted, connect, tmp_path):
    cluster, digests = adapted
    client = connect(cluster)

    def receipt(**fields):
        request = client.request(QUESTION, max_tokens=4)
        for name, value in fields.items():
            setattr(request, name, value)
        return client.answer(request)[2].receipt

    eventually(lambda: cluster.value("decoder", "cogumi_adapter_catalogue_size") == 2, "the list")
    assert receipt().adapter_digest == ""
    assert receipt(adapter="coder").adapter_digest == digests["coder"]
    assert receipt(adapter=digests["poet"]).adapter_digest == digests["poet"]
    # The next version of a name takes its place.
    folder = write_lora(tmp_path / "next", rank=2, seed=3)
    digest = cogumi(cluster, "adapter", "load", str(folder), "poet")["digest"]
    eventually(lambda: receipt(adapter="poet").adapter_digest == digest, "the next version")
    with pytest.raises(grpc.RpcError) as error:
        receipt(adapter="nobody")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND and "nobody" in error.value.details()


def test_adapters_while_the_catalogue_is_gone(adapted, connect):
    cluster, digests = adapted
    client = connect(cluster)

    def answer(adapter):
        request = client.request(QUESTION, max_tokens=8)
        request.adapter = adapter
        return client.answer(request)[:2]

    eventually(lambda: cluster.value("decoder", "cogumi_adapter_catalogue_size") == 2, "the list")
    before = answer("coder")
    victim = cluster.pid("modifiers")
    os.kill(victim, signal.SIGKILL)
    assert answer("coder") == before, "what is resident needs no catalogue"
    eventually(lambda: cluster.pid("modifiers") != victim, "a new process", 60)
    eventually(lambda: cluster.value("decoder", "cogumi_adapter_catalogue_current") == 1,
               "the decoder follows again")
    assert answer("coder") == before and answer("poet") != before


def test_wrong_bytes_are_refused(adapted, connect):
    cluster, digests = adapted
    eventually(lambda: cluster.value("decoder", "cogumi_adapter_catalogue_size") == 2, "the list")
    (weights,) = cluster.folder.glob(f"state/**/{digests['poet']}/adapter_model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(data)
    client = connect(cluster)
    request = client.request(QUESTION, max_tokens=4)
    request.adapter = "poet"
    with pytest.raises(grpc.RpcError) as error:
        client.answer(request)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert hashlib.sha256(data).hexdigest() in error.value.details()
    assert cluster.value("decoder", "cogumi_adapter_fetch_errors_total") == 1
    request.adapter = "coder"
    assert client.answer(request)[2].receipt.adapter_digest == digests["coder"]
