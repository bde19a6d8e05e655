"""One YAML file for the whole cluster, in one process and in four."""
import contextlib
import json
import os
import shutil
import subprocess
import urllib.request

import grpc
import pytest
from cluster import BIN, eventually, free_port, parse_metrics
from conftest import model_path

COGUMI = str(BIN / "cogumi")


@pytest.fixture
def environment(tmp_path):
    return {**os.environ, "COGUMI_STATE_DIR": str(tmp_path / "state")}


@pytest.mark.parametrize("split", [[], ["--split"]])
def test_file_then_variables_then_flags(environment, tmp_path, pb, split):
    grpc_port, http_port = free_port(), free_port()
    config = tmp_path / "cogumi.yaml"
    config.write_text(f"""
gateway: {{listen: "127.0.0.1:{grpc_port}", http: "127.0.0.1:1", session_turns: 2}}
router: {{metrics: ""}}
modifiers: {{metrics: ""}}
decoder: {{max_running: 3, max_queued: 5, prefill_chunk: 64, metrics: ""}}
""")
    environment["COGUMI_DECODER_MAX_QUEUED"] = "7"
    environment["COGUMI_GATEWAY_HTTP"] = "127.0.0.1:2"
    process = subprocess.Popen(
        [COGUMI, "serve", *split, "--json", "--config", str(config), "--gateway.http",
         f"127.0.0.1:{http_port}"], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        services = {s["service"]: s for s in json.loads(line)["services"]}
        assert services["gateway"]["address"] == f"127.0.0.1:{grpc_port}"
        assert services["gateway"]["http"] == f"127.0.0.1:{http_port}"
        assert services["decoder"]["metrics"] == ""
        with grpc.insecure_channel(services["decoder"]["address"]) as channel:
            info = pb.decoder_grpc.DecoderServiceStub(channel).ModelInfo(
                pb.decoder.ModelInfoRequest(), timeout=10)
            assert (info.max_running, info.max_queued) == (3, 7)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


@contextlib.contextmanager
def serving(environment, *words):
    """A cluster; yields what it said at its start, and asks for a clean end."""
    process = subprocess.Popen([COGUMI, "serve", "--json", *words], env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line, process.communicate(timeout=60)[1]
        yield json.loads(line)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def model_of(address, pb):
    with grpc.insecure_channel(address) as channel:
        return pb.decoder_grpc.DecoderServiceStub(channel).ModelInfo(
            pb.decoder.ModelInfoRequest(), timeout=10).model.id


@pytest.mark.parametrize("split", [[], ["--split"]])
def test_model_and_addresses_of_the_file(environment, tmp_path, pb, connect, split):
    """They hold in both modes, and the rest of the cluster follows them."""
    model = tmp_path / "another-name.gguf"
    model.symlink_to(model_path())
    ports = {name: free_port() for name in ("gateway", "http", "router", "decoder", "modifiers")}
    config = tmp_path / "cogumi.yaml"
    config.write_text(f"""
gateway: {{listen: "127.0.0.1:{ports['gateway']}", http: "127.0.0.1:{ports['http']}"}}
router: {{metrics: "", listen: "127.0.0.1:{ports['router']}"}}
decoder: {{metrics: "", listen: "127.0.0.1:{ports['decoder']}", model: {model}, model_id: mine}}
modifiers: {{metrics: "", listen: "127.0.0.1:0"}}
""")
    environment["COGUMI_MODIFIERS_LISTEN"] = f"127.0.0.1:{ports['modifiers']}"
    # Not needed when the file names a model.
    environment["COGUMI_MODEL"] = "/nowhere/x.gguf"
    with serving(environment, *split, "--config", str(config)) as started:
        services = {s["service"]: s for s in started["services"]}
        for name in ("gateway", "router", "decoder", "modifiers"):
            assert services[name]["address"] == f"127.0.0.1:{ports[name]}"
        assert os.path.samefile(started["model"], model)
        assert model_of(services["decoder"]["address"], pb) == "mine"

        class Started:
            grpc = services["gateway"]["address"]

        client = connect(Started)
        eventually(lambda: client.stub.ListModels(pb.gateway.ListModelsRequest()), "models")
        assert client.ask("Hi", max_tokens=1)
        all_up = {f'{{service="{name}"}}': 1 for name in ("decoder", "router", "modifiers")}

        def backends():
            url = f"http://127.0.0.1:{ports['http']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as shown:
                return parse_metrics(shown.read().decode())["cogumi_gateway_backend_up"]

        eventually(lambda: backends() == all_up, backends)


@pytest.mark.parametrize("split", [[], ["--split"]])
def test_variables_and_the_person_decide_about_the_model(environment, tmp_path, pb, split):
    names = {}
    for name in ("file", "variable", "person"):
        names[name] = shutil.copy(model_path(), tmp_path / f"{name}.gguf")
    config = tmp_path / "cogumi.yaml"
    config.write_text(f"decoder: {{model: {names['file']}}}")
    flags = [*split, "--config", str(config), "--gateway.listen=127.0.0.1:0", "--gateway.http="]
    for service in ("router", "decoder", "modifiers"):
        environment[f"COGUMI_{service.upper()}_METRICS"] = ""
    environment["COGUMI_DECODER_MODEL"] = str(names["variable"])
    with serving(environment, *flags) as started:
        assert started["model"] == str(names["variable"])
    with serving(environment, str(names["person"]), *flags) as started:
        assert started["model"] == str(names["person"])


@pytest.mark.parametrize("split", [[], ["--split"]])
@pytest.mark.parametrize("text, words", [
    ("decoder: {max_runing: 3}", ["max_runing", "max_running"]),
    ("decodr: {max_running: 3}", ["decodr", "decoder"]),
    ("decoder: {max_running: 0}", ["max_running", "0"]),
    ("decoder: {max_running: many}", ["max_running", "many"]),
    ("decoder: [", ["cogumi.yaml"]),
])
def test_a_wrong_file_is_explained(environment, tmp_path, split, text, words):
    config = tmp_path / "cogumi.yaml"
    config.write_text(text)
    result = subprocess.run([COGUMI, "serve", *split, "--config", str(config)], env=environment,
                            capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    for word in words:
        assert word in result.stderr, result.stderr


def test_internal_services_listen_on_this_machine_only(environment):
    for service in ("router", "decoder", "modifiers"):
        result = subprocess.run(
            [str(BIN / f"cogumi-{service}"), "--listen", "0.0.0.0:0", "--metrics", ""],
            env=environment, capture_output=True, text=True, timeout=60)
        assert result.returncode != 0 and "0.0.0.0" in result.stderr, service
    result = subprocess.run([str(BIN / "cogumi-gateway"), "--listen", "0.0.0.0:0", "--http", ""],
                            env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0 and "tokens" in result.stderr
