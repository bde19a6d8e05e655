"""The `cogumi` command: every verb from its own list, its JSON, its exit codes."""
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time

import pytest
from cluster import BIN, ROOT, SERVICES, alive, eventually, free_port
from conftest import model_path

COGUMI = str(BIN / "cogumi")


@pytest.fixture
def environment(tmp_path):
    """A machine where nothing of ours runs."""
    return {**os.environ, "COGUMI_STATE_DIR": str(tmp_path / "state")}


def run(*words, environment, check=True, **kwargs):
    result = subprocess.run([COGUMI, *words], env=environment, capture_output=True, text=True,
                            timeout=120, **kwargs)
    assert not check or result.returncode == 0, (words, result.stdout, result.stderr)
    return result


def verbs():
    shown = subprocess.run([COGUMI, "help", "--json"], capture_output=True, text=True, check=True)
    return [verb["name"] for verb in json.loads(shown.stdout)["verbs"]]


# What each verb is tried with, against a running cluster. A verb that is missing here is a failure.
ARGUMENTS = {
    "run": ["What is 2+2?", "--max-tokens", "3"],
    "chat": [],
    "list": [],
    "show": [],
    "ps": [],
    "stop": None,  # ends the shared cluster: tried on its own below
    "serve": None,  # runs until it is stopped: tried on its own below
    "route explain": ["Write a Python function."],
    "adapter load": None,  # needs an adapter: see test_adapters
    "adapter list": [],
    "adapter show": None,
    "adapter rm": None,
    "tokenize": ["Hello world"],
    "bench": ["--tokens", "4", "--prompt", "16", "--rounds", "2", "--batches", "2", "--depths",
              "32"],
    "doctor": [],
    "check": ["--golden", str(ROOT / "tests/support/golden.json")],
    "version": [],
}


def test_every_verb_is_tried():
    assert sorted(verbs()) == sorted(ARGUMENTS)


@pytest.mark.parametrize("verb", [v for v, words in ARGUMENTS.items() if words is not None])
def test_json_of_every_verb(cluster, verb):
    result = run(*verb.split(), *ARGUMENTS[verb], "--json", environment=cluster.environment,
                 input="Say hi.\n")
    lines = result.stdout.splitlines()
    assert lines
    for line in [result.stdout] if verb == "route explain" else lines:
        assert isinstance(json.loads(line), dict), line


@pytest.mark.parametrize("verb", sorted(ARGUMENTS))
def test_help_and_usage_errors_of_every_verb(environment, verb):
    shown = run(*verb.split(), "--help", environment=environment)
    assert f"cogumi {verb}" in shown.stdout and "--json" in shown.stdout
    if verb == "serve":
        return  # takes the options of the services as well
    wrong = run(*verb.split(), "--jsn", environment=environment, check=False)
    assert wrong.returncode == 2 and "--json" in wrong.stderr
    wrong = run(*verb.split(), "--jsn", "--json", environment=environment, check=False)
    assert wrong.returncode == 2 and json.loads(wrong.stdout)["error"]["message"]


def test_run_prints_the_contract(cluster, golden):
    result = run("run", golden[0]["prompt"], "--json", "--seed", "5",
                 environment=cluster.environment)
    answer = json.loads(result.stdout)
    assert {"text", "token_ids", "prompt_token_ids", "finish_reason", "usage", "timings",
            "receipt"} <= set(answer)
    assert "Paris" in answer["text"] and answer["finish_reason"] == "stop"
    assert answer["prompt_token_ids"] == golden[0]["prompt_tokens"]
    assert answer["usage"]["prompt_tokens"] == len(answer["prompt_token_ids"])
    assert answer["receipt"]["seed"] == 5 and len(answer["receipt"]["model_digest"]) == 64
    plain = run("run", golden[0]["prompt"], environment=cluster.environment)
    assert plain.stdout == answer["text"] + "\n"


def test_run_takes_a_model_by_name_or_path(cluster):
    path = str(model_path())
    name = model_path().stem
    for model in (name, name.upper(), path):
        result = run("run", model, "What is 2+2?", "--max-tokens", "4",
                     environment=cluster.environment)
        assert result.stdout.strip()
    wrong = run("run", "no-such-model", "x", environment=cluster.environment, check=False)
    assert wrong.returncode == 1 and "no-such-model" in wrong.stderr and "then:" in wrong.stderr


def test_run_raw_goes_without_the_template(cluster):
    answer = json.loads(run("run", "The capital of France is", "--raw", "--max-tokens", "4",
                            "--json", environment=cluster.environment).stdout)
    assert "Paris" in answer["text"] and answer["receipt"]["template_digest"] == ""


def test_run_keeps_a_session(cluster, client):
    run("run", "My name is Ada.", "--session", "by-cli", "--max-tokens", "4",
        environment=cluster.environment)
    assert [t.user for t in client.turns("by-cli")] == ["My name is Ada."]


def test_run_keeps_a_session_without_a_cluster(environment):
    """What was asked for is kept in the user's store, though the cluster goes."""
    words = ["--session", "alone", "--max-tokens", "4", "--json"]
    first = run("run", "My name is Ada.", *words, environment=environment)
    second = run("run", "My name is Ada.", *words, environment=environment)
    prompts = [json.loads(r.stdout)["usage"]["prompt_tokens"] for r in (first, second)]
    assert prompts[1] > prompts[0]  # the first turn stands in front of it
    again = run("run", "My name is Ada.", "--max-tokens", "4", "--json", environment=environment)
    assert json.loads(again.stdout)["usage"]["prompt_tokens"] == prompts[0]


def test_run_leaves_a_cluster_of_another_build_alone(cluster, tmp_path):
    """A program from elsewhere starts its own: what it shows must be what it is."""
    for name in ("cogumi", *(f"cogumi-{service}" for service in SERVICES)):
        shutil.copy2(BIN / name, tmp_path / name)

    def answered():
        return cluster.value("gateway", "cogumi_rpc_calls_total", method="Chat")

    before = answered()
    result = subprocess.run([tmp_path / "cogumi", "run", "Hi", "--max-tokens", "1"],
                            env=cluster.environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert answered() == before
    run("run", "Hi", "--max-tokens", "1", environment=cluster.environment)
    eventually(lambda: answered() == before + 1, answered)


def test_run_starts_a_cluster_of_its_own_and_leaves_nothing(environment):
    result = run("run", "What is the capital of France?", "--json", environment=environment)
    assert "Paris" in json.loads(result.stdout)["text"]
    assert json.loads(run("ps", "--json", environment=environment).stdout)["clusters"] == []
    state = environment["COGUMI_STATE_DIR"]
    assert os.listdir(os.path.join(state, "clusters")) == []


def test_interrupting_run_stops_what_it_started(environment):
    process = subprocess.Popen([COGUMI, "run", "Tell me a very long story.", "--ignore-eos"],
                               env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        os.read(process.stdout.fileno(), 1)
        clusters = json.loads(run("ps", "--json", environment=environment).stdout)["clusters"]
        pids = [service["pid"] for service in clusters[0]["services"]]
        assert len(pids) == 4 and len(set(pids)) == 4
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(30) == 130
        assert not any(alive(pid) for pid in pids)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_a_killed_run_leaves_no_service(environment):
    process = subprocess.Popen([COGUMI, "run", "Tell me a very long story.", "--ignore-eos"],
                               env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.read(process.stdout.fileno(), 1)
    clusters = json.loads(run("ps", "--json", environment=environment).stdout)["clusters"]
    pids = [service["pid"] for service in clusters[0]["services"]]
    folder = os.path.dirname(clusters[0]["services"][0]["address"].removeprefix("unix:"))
    process.kill()
    process.communicate()
    eventually(lambda: not any(alive(pid) for pid in pids), "the end of the services", 60)
    assert json.loads(run("ps", "--json", environment=environment).stdout)["clusters"] == []
    assert not os.path.exists(folder)


def test_check_passes_and_sees_a_wrong_answer(cluster, golden, tmp_path):
    words = ["check", "--golden", str(ROOT / "tests/support/golden.json")]
    shown = run(*words, environment=cluster.environment).stdout
    # Four processes of its own, whatever runs.
    pids = set()
    for service in SERVICES:
        pids.add(int(re.search(rf"{service} +pid (\d+)\b", shown)[1]))
    assert len(pids) == 4
    assert not pids & {cluster.pid(service) for service in SERVICES}
    assert "session" in shown and "usage" in shown
    wrong = [dict(golden[0])]
    wrong[0]["output_tokens"] = [token + 1 for token in wrong[0]["output_tokens"]]
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(wrong))
    result = run("check", "--golden", str(file), environment=cluster.environment, check=False)
    assert result.returncode == 1 and "WRONG" in result.stdout


@pytest.mark.parametrize("split", [[], ["--split"]])
def test_serve_ps_stop(environment, split):
    flags = [f"--{service}.metrics=127.0.0.1:0" for service in ("router", "decoder", "modifiers")]
    process = subprocess.Popen(
        [COGUMI, "serve", *split, "--json", "--gateway.listen", "127.0.0.1:0", "--gateway.http",
         "127.0.0.1:0", *flags],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        started = json.loads(process.stdout.readline())
        clusters = json.loads(run("ps", "--json", environment=environment).stdout)["clusters"]
        assert [c["supervisor"] for c in clusters] == [process.pid]
        pids = {service["pid"] for service in started["services"]}
        assert pids == {service["pid"] for service in clusters[0]["services"]}
        assert (len(pids) == 4 and process.pid not in pids) if split else pids == {process.pid}
        answer = run("run", "What is the capital of France?", environment=environment)
        assert "Paris" in answer.stdout
        assert run("ps", environment=environment).stdout.count("pid") == 4
        stopped = json.loads(run("stop", "--json", environment=environment).stdout)
        assert stopped == {"stopped": [process.pid]}
        assert process.wait(30) == 0
        assert not any(alive(pid) for pid in pids)
        assert json.loads(run("stop", "--json", environment=environment).stdout) == {"stopped": []}
    finally:
        process.kill()
        process.communicate()


def test_serve_refuses_unknown_options(environment):
    for split in ([], ["--split"]):
        for flag in ("--gateway.htpt=1", "--gatway.http=1", "--nonsense"):
            result = run("serve", *split, flag, environment=environment, check=False)
            assert result.returncode != 0, flag
            assert flag.split("=")[0].split(".")[-1].lstrip("-") in result.stderr


def test_list_show_tokenize(cluster):
    environment = cluster.environment
    models = json.loads(run("list", "--json", environment=environment).stdout)["models"]
    assert any(model["path"] == str(model_path().resolve()) and model["running"]
               for model in models)
    shown = json.loads(run("show", "--json", environment=environment).stdout)
    assert shown["architecture"] == "llama" and shown["quantization"] == "Q4_1"
    tokens = json.loads(run("tokenize", "Hello world", "--json", environment=environment).stdout)
    assert "".join(tokens["pieces"]) == "Hello world" and tokens["dropped_bytes"] == 0
    text = json.loads(run("tokenize", "<|im_end|>", "--json", environment=environment).stdout)
    special = json.loads(run("tokenize", "<|im_end|>", "--special", "--json",
                             environment=environment).stdout)
    assert len(special["ids"]) == 1 < len(text["ids"])


def test_bench_tells_machine_and_configuration(cluster):
    result = json.loads(run("bench", *ARGUMENTS["bench"], "--json",
                            environment=cluster.environment).stdout)
    assert result["read_bandwidth_bytes_per_second"] > 0 and result["kernel_configuration"]
    assert result["machine"]["cores"] >= 1 and result["instruction_set"]
    cases = {case["name"]: case for case in result["results"]}
    assert set(cases) == {"decode", "prefill", "batch-2", "depth-32"}
    for case in cases.values():
        assert len(case["rounds"]) == 2 and 0 < case["median"] <= case["best"]
        assert case["median"] == pytest.approx(sum(case["rounds"]) / 2)
    # The file holds a vocabulary beside the weights that a token reads.
    assert 0.9 * result["model_bytes"] < result["bytes_per_token"] < result["model_bytes"]
    assert result["decode_bandwidth_share"] == pytest.approx(
        cases["decode"]["median"] * result["bytes_per_token"]
        / result["read_bandwidth_bytes_per_second"])


def test_doctor_says_what_is_wrong(cluster, environment, tmp_path):
    well = json.loads(run("doctor", "--json", environment=cluster.environment).stdout)
    names = {finding["name"]: finding for finding in well["findings"]}
    assert well["ok"] and {"processor", "memory", "bandwidth", "model"} <= set(names)
    assert sum(name.endswith(f"of cluster {cluster.process.pid}") for name in names) == 4
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model_path().read_bytes()[:100000])
    result = run("doctor", "--json", environment={**environment, "COGUMI_MODEL": str(broken)},
                 check=False)
    assert result.returncode == 1
    model = [f for f in json.loads(result.stdout)["findings"] if f["name"] == "model"][0]
    assert model["state"] == "error" and model["advice"]


def test_doctor_looks_at_the_ports_that_serve_would_take(cluster, environment):
    def ports(**variables):
        shown = run("doctor", "--json", environment={**environment, **variables}, check=False)
        return {f["name"]: f for f in json.loads(shown.stdout)["findings"]
                if f["name"].startswith("port ")}

    assert set(ports()) == {"port 7070", "port 8080", "port 7171", "port 7172", "port 7173"}
    taken = cluster.http.rsplit(":", 1)[1]
    found = ports(COGUMI_GATEWAY_LISTEN=cluster.http, COGUMI_ROUTER_METRICS="",
                  COGUMI_DECODER_LISTEN=f"127.0.0.1:{free_port()}")
    assert "port 7070" not in found and "port 7171" not in found and len(found) == 5
    assert found[f"port {taken}"]["state"] == "warning"
    assert "--gateway.listen" in found[f"port {taken}"]["advice"]
    own = {f["name"]: f for f in json.loads(run(
        "doctor", "--json", environment={**cluster.environment,
                                         "COGUMI_GATEWAY_HTTP": cluster.http}).stdout)["findings"]}
    assert f"cluster {cluster.process.pid}" in own[f"port {taken}"]["found"]


def test_route_explain_of_an_answered_request(cluster, environment):
    answer = json.loads(run("run", "Write a Python function.", "--max-tokens", "2", "--json",
                            environment=cluster.environment).stdout)
    explained = json.loads(run("route", "explain", "--request", answer["request_id"],
                               environment=cluster.environment).stdout)
    assert explained["route"]["domain"] == "DOMAIN_CODE"
    alone = json.loads(run("route", "explain", "Write a Python function.", "--json",
                           environment=environment).stdout)
    assert alone["domain"] == "code" and alone["calibrated"] is False


def test_chat_from_a_pipe(cluster):
    script = "/set max_tokens 12\nMy name is Ada.\n\"\"\"What is\nmy name?\"\"\"\n/show\n/bye\nnever"
    result = run("chat", environment=cluster.environment, input=script)
    assert "max_tokens = 12" in result.stdout and "never" not in result.stdout
    answers = run("chat", "--json", "--max-tokens", "8", environment=cluster.environment,
                  input="One \\\ntwo\nThree\n/clear\n")
    lines = [json.loads(line) for line in answers.stdout.splitlines()]
    assert len(lines) == 2 and "forgot 2 turns" in answers.stderr
    # The second answer knows the first turn.
    assert lines[1]["usage"]["prompt_tokens"] > lines[0]["usage"]["prompt_tokens"]


def test_chat_on_a_terminal(cluster):
    """Ctrl-C stops the answer, not the program; Ctrl-D leaves."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**cluster.environment, "TERM": "dumb", "NO_COLOR": "1", "LC_ALL": "C"}
        os.execve(COGUMI, [COGUMI, "chat", "--ignore-eos"], environment)
    shown = b""

    def read_until(pattern, seconds=60):
        nonlocal shown
        deadline = time.monotonic() + seconds
        while not re.search(pattern, shown):
            left = deadline - time.monotonic()
            assert left > 0, (pattern, shown)
            if select.select([terminal], [], [], left)[0]:
                shown += os.read(terminal, 4096)
        shown = shown[re.search(pattern, shown).end():]

    try:
        read_until(rb">>> ")
        os.write(terminal, b"Tell me a very long story.\n")
        read_until(rb"story\.\r\n")
        # Not before the answer is under way: at the prompt Ctrl-C means something else.
        eventually(lambda: cluster.value("decoder", "vllm:num_requests_running") == 1, "an answer")
        os.write(terminal, b"\x03")
        read_until(rb"\(stopped\)")
        read_until(rb">>> ")
        cluster.await_idle()
        os.write(terminal, b"/set max_tokens 4\n")
        read_until(rb">>> ")
        os.write(terminal, b"Hi\n")
        read_until(rb"Hi\r\n.+\r\n>>> ")
        # At the prompt Ctrl-C throws the line away. What is typed need not be ASCII.
        os.write(terminal, b"/by")
        read_until(rb"/by")
        # The signal may come before the program waits for the next key; then it takes another one,
        # as it does for a person.
        for _ in range(30):
            os.write(terminal, b"\x03")
            while b">>> " not in shown and select.select([terminal], [], [], 2)[0]:
                shown += os.read(terminal, 4096)
            if b">>> " in shown:
                break
        read_until(rb">>> ")
        os.write(terminal, "/größe\n".encode())
        read_until("there is no command /größe".encode())
        read_until(rb">>> ")
        os.write(terminal, b"\x04")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = None
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


def test_exit_codes(environment):
    assert run("no-such-verb", environment=environment, check=False).returncode == 2
    assert "is it 'run'" in run("rnu", environment=environment, check=False).stderr
    assert run(environment=environment, check=False).returncode == 2
    assert run("run", environment=environment, check=False).returncode == 2
    assert run("run", "", environment=environment, check=False).returncode == 2
    assert run("run", "a", "b", "c", environment=environment, check=False).returncode == 2
    for flag, value in (("--temperature", "3"), ("--max-tokens", "-1"), ("--seed", "x"),
                        ("--top-p", "nan")):
        assert run("run", "x", flag, value, environment=environment, check=False).returncode == 2
    missing = run("run", "x", environment={**environment, "COGUMI_MODEL": "/nowhere/x.gguf"},
                  check=False)
    assert missing.returncode == 1 and "then:" in missing.stderr
    assert run("help", "run", environment=environment).returncode == 0
    assert run("--version", environment=environment).stdout.startswith("cogumi ")


def test_options_come_from_the_environment_too(cluster):
    answer = json.loads(run("run", "Tell me a story.", "--json",
                            environment={**cluster.environment, "COGUMI_RUN_MAX_TOKENS": "3"}
                            ).stdout)
    assert answer["usage"]["completion_tokens"] == 3
    wrong = run("run", "x", environment={**cluster.environment, "COGUMI_RUN_MAX_TOKENS": "many"},
                check=False)
    assert wrong.returncode == 2 and "COGUMI_RUN_MAX_TOKENS" in wrong.stderr


def test_no_colour_codes_in_a_pipe(cluster):
    for verb in ("ps", "list", "doctor", "help"):
        assert "\x1b" not in run(verb, environment=cluster.environment).stdout


def test_a_service_that_cannot_start_says_why(environment, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 1000)
    result = run("run", str(broken), "x", environment=environment, check=False)
    assert result.returncode == 1
    assert "cogumi-decoder" in result.stderr and "then:" in result.stderr
    assert json.loads(run("ps", "--json", environment=environment).stdout)["clusters"] == []
