"""Work that nobody waits for stops; work that does not fit is refused at once."""
import concurrent.futures
import http.client
import json
import socket

import grpc
import pytest
from conftest import collect
from cluster import Cluster, eventually
from test_contract import details

LONG = {"max_tokens": 8000, "ignore_eos": True}


def steps(cluster):
    return cluster.value("decoder", "cogumi_engine_steps_total")


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Steps that take far longer than a call between processes, so that they can be counted from
    outside: the scalar kernels, and few rows of a prompt in a step."""
    running = Cluster(tmp_path_factory.mktemp("slow"), "--decoder.kernels", "reference",
                      "--decoder.activations", "f32", "--decoder.prefill-chunk", "4")
    yield running
    assert running.stop() == 0, running.log_text()


def assert_stopped_within_two_steps(cluster, known):
    """`known`: the steps that had ended when the work was given up."""
    cluster.await_idle()
    at_rest = steps(cluster)
    assert at_rest - known <= 2, "it ran on"
    # Idle means idle: what was given up takes no step any more.
    for _ in range(5):
        assert steps(cluster) == at_rest


def sampling(client):
    return client.pb.common.SamplingParams(temperature=0, **LONG)


def begun(stream, tokens=3):
    """Reads some tokens of an answer. The first comes with the step that reads a prompt as short
    as these, each other with a step of its own."""
    read = 0
    while read < tokens:
        read += len(next(stream).chunk.token_ids)
    return read


def test_cancel_stops_the_work(slow, connect):
    client = connect(slow)
    before = steps(slow)
    stream = client.complete(text="Once", sampling=sampling(client))
    read = begun(stream)
    stream.cancel()
    assert_stopped_within_two_steps(slow, before + read)
    assert slow.value("decoder", "cogumi_engine_requests_cancelled_total") > 0


def test_cancel_while_the_prompt_is_read_stops_the_work(slow, connect):
    client = connect(slow)
    before = steps(slow)
    stream = client.complete(text="word " * 400, sampling=client.pb.common.SamplingParams(
        temperature=0, max_tokens=1000, ignore_eos=True))
    eventually(lambda: steps(slow) > before, "a step over the prompt")
    known = steps(slow)
    stream.cancel()
    assert_stopped_within_two_steps(slow, known)
    assert known - before < 90, "the prompt was read already"


def test_a_lost_grpc_connection_stops_the_work(slow, connect):
    client = connect(slow)
    before = steps(slow)
    read = begun(client.complete(text="Once", sampling=sampling(client)))
    client.channel.close()
    assert_stopped_within_two_steps(slow, before + read)


def test_a_lost_http_connection_stops_the_work(slow):
    before = steps(slow)
    connection = http.client.HTTPConnection(slow.http, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps({
        "model": "", "stream": True, "temperature": 0, "max_tokens": 8000,
        "prompt": "Once", "logprobs": 0,
    }), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    read = 0
    while read < 3:
        line = response.readline()
        if line.startswith(b"data: "):
            logprobs = json.loads(line[6:])["choices"][0]["logprobs"]
            read += len(logprobs["tokens"]) if logprobs else 0
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert_stopped_within_two_steps(slow, before + read)


def test_a_deadline_stops_the_work(slow, connect):
    client = connect(slow)
    before = steps(slow)
    read = 0
    with pytest.raises(grpc.RpcError) as error:
        for event in client.complete(text="Once", sampling=sampling(client), timeout=2):
            read += len(event.chunk.token_ids)
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert read > 0
    assert_stopped_within_two_steps(slow, before + read)


def test_a_full_queue_refuses_at_once(own_cluster, connect):
    cluster = own_cluster("--decoder.max-running", "2", "--decoder.max-queued", "2")
    client = connect(cluster)
    request = client.request("Tell me a very long story.", **LONG)
    streams = [client.chat(request) for _ in range(4)]
    eventually(lambda: cluster.value("decoder", "vllm:num_requests_running") == 2
               and cluster.value("decoder", "vllm:num_requests_waiting") == 2,
               lambda: f"two running, two waiting: {cluster.metrics('decoder')}")
    with pytest.raises(grpc.RpcError) as error:
        list(client.chat(request, timeout=10))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = details(error.value)["RetryInfo"].retry_delay
    assert retry.ToTimedelta().total_seconds() > 0

    connection = http.client.HTTPConnection(cluster.http, timeout=10)
    connection.request("POST", "/v1/chat/completions", json.dumps({
        "messages": [{"role": "user", "content": "x"}]}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 429 and float(response.getheader("Retry-After")) > 0
    assert "error" in json.loads(response.read())

    for stream in streams:
        stream.cancel()
    cluster.await_idle()
    assert client.ask("What is 2+2?", max_tokens=4)
    assert cluster.value("decoder", "cogumi_engine_requests_rejected_total") >= 2


def test_cancel_in_the_queue_frees_the_place(own_cluster, connect):
    cluster = own_cluster("--decoder.max-running", "1", "--decoder.max-queued", "1")
    client = connect(cluster)
    request = client.request("Tell me a very long story.", **LONG)
    running = client.chat(request)
    next(running)
    waiting = client.chat(request)
    eventually(lambda: cluster.value("decoder", "vllm:num_requests_waiting") == 1,
               "one request in the queue")
    waiting.cancel()
    eventually(lambda: cluster.value("decoder", "vllm:num_requests_waiting") == 0,
               "an empty queue")
    # The one that runs goes on undisturbed, and the place can be taken again.
    next(running)
    second = client.chat(request)
    eventually(lambda: cluster.value("decoder", "vllm:num_requests_waiting") == 1,
               "one request in the queue again")
    running.cancel()
    assert next(second)
    second.cancel()
    cluster.await_idle()


def test_more_streams_than_slots_all_finish(client, cluster):
    requests = [client.request(f"Count to {n}.", max_tokens=16) for n in range(48)]
    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(lambda r: collect(client.chat(r, timeout=300)), requests))
    assert all(len(ids) > 0 for _, ids, _ in answers)
    cluster.await_idle()
