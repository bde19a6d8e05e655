"""The catalogue of adapters through the command line and gRPC, across a kill."""
import hashlib
import json
import os
import signal
import subprocess
import sys

import grpc
import pytest
from cluster import BIN, ROOT, eventually

sys.path.insert(0, str(ROOT / "tests/services/modifiers"))
sys.path.insert(0, str(ROOT / "tests/support"))
import tiny_models  # noqa: E402
from make_adapter import Base, write_adapter  # noqa: E402


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
