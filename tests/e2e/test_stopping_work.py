"""Work that nobody waits for stops; work that does not fit is refused at once."""
import concurrent.futures
import http.client
import json
import socket

import grpc
import pytest
from conftest import collect
from cluster import eventually
from test_contract import details

LONG = {"max_tokens": 8000, "ignore_eos": True}


def generated(cluster):
    return cluster.value("decoder", "vllm:generation_tokens_total")


def assert_stopped(cluster, running_before_stop):
    """Slot and pages are free, and no token is generated any more."""
    cluster.await_idle()
    at_rest = generated(cluster)
    assert at_rest - running_before_stop < 200, "it ran on for hundreds of tokens"
    assert generated(cluster) == at_rest


def test_cancel_stops_the_work(client, cluster):
    stream = client.chat(client.request("Tell me a very long story.", **LONG))
    for _ in range(3):
        next(stream)
    before = generated(cluster)
    stream.cancel()
    assert_stopped(cluster, before)
    assert cluster.value("decoder", "cogumi_engine_requests_cancelled_total") > 0


def test_cancel_while_the_prompt_is_read_stops_the_work(client, cluster):
    stream = client.chat(client.request("word " * 6000, max_tokens=500, ignore_eos=True))
    eventually(lambda: not cluster.idle(), "a request at the decoder")
    before = generated(cluster)
    stream.cancel()
    assert_stopped(cluster, before)


def test_a_lost_grpc_connection_stops_the_work(connect, cluster):
    client = connect(cluster)
    stream = client.chat(client.request("Tell me a very long story.", **LONG))
    next(stream)
    before = generated(cluster)
    client.channel.close()
    assert_stopped(cluster, before)


def test_a_lost_http_connection_stops_the_work(cluster):
    connection = http.client.HTTPConnection(cluster.http, timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps({
        "model": "", "stream": True, "temperature": 0, "max_tokens": 8000,
        "messages": [{"role": "user", "content": "Count from one to ten thousand, one by one."}],
    }), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"data: ")
    before = generated(cluster)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert_stopped(cluster, before)


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
