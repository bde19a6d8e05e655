"""One YAML file for the whole cluster, in one process and in four."""
import json
import os
import subprocess

import grpc
import pytest
from cluster import BIN, free_port

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
