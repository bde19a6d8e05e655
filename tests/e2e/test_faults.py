"""Services that are killed come back, acknowledged turns are still there, a drain loses nothing."""
import os
import shutil
import signal
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster import BIN, SERVICES, alive, eventually
from conftest import collect


def answers(client):
    """Whether the cluster answers now."""
    try:
        return bool(collect(client.chat(client.request("What is 2+2?", max_tokens=4),
                                        timeout=20))[0])
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED,
                                grpc.StatusCode.INTERNAL), error
        return False


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_comes_back(own_cluster, connect, service):
    cluster = own_cluster()
    client = connect(cluster)
    said = client.ask("What is the capital of France?", session="kept", max_tokens=8)
    # A stream that runs while the service is killed ends: with its answer, or with an error.
    stream = client.chat(client.request("Tell me a long story.", max_tokens=200, ignore_eos=True))
    next(stream)
    victim = cluster.pid(service)
    os.kill(victim, signal.SIGKILL)
    try:
        collect(stream)
        assert service in ("router", "modifiers")
    except grpc.RpcError as error:
        assert service in ("gateway", "decoder"), (service, error)
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL), error

    # Whoever asks meanwhile gets an answer or a clean error, after the gateway's own attempts.
    answers(client)
    eventually(lambda: cluster.pid(service) != victim and alive(cluster.pid(service)),
               "a new process", 60)
    eventually(lambda: answers(client), lambda: f"an answer: {cluster.log_text()}", 60)
    assert [(t.user, t.assistant) for t in client.turns("kept")] == [
        ("What is the capital of France?", said)]
    cluster.await_idle()


def test_every_acknowledged_turn_survives_a_killed_gateway(own_cluster, connect):
    cluster = own_cluster()
    client = connect(cluster)
    acknowledged = {}
    for number in range(6):
        session = f"s{number}"
        acknowledged[session] = client.ask(f"Say {number}.", session=session, max_tokens=3)
    victim = cluster.pid("gateway")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: cluster.pid("gateway") != victim, "a new gateway", 60)
    eventually(lambda: answers(client), "an answer", 60)
    for session, text in acknowledged.items():
        assert [t.assistant for t in client.turns(session)] == [text]


def test_without_a_router_answers_go_on(own_cluster, connect, pb):
    cluster = own_cluster()
    client = connect(cluster)
    os.kill(cluster.pid("router"), signal.SIGSTOP)
    try:
        _, _, complete = client.answer(client.request("What is 2+2?", max_tokens=4))
        explained = client.stub.Explain(
            pb.gateway.ExplainRequest(request_id=complete.request_id), timeout=10)
        assert explained.notes, "the degraded mode is nowhere to be seen"
        eventually(lambda: cluster.value("gateway", "cogumi_gateway_router_degraded_total") > 0,
                   "the degraded mode's metric")
    finally:
        os.kill(cluster.pid("router"), signal.SIGCONT)


def test_a_drain_loses_no_token(own_cluster, connect):
    cluster = own_cluster()
    client = connect(cluster)
    request = client.request("Tell me a long story.", max_tokens=150, ignore_eos=True)
    _, expected, _ = client.answer(request)
    streams = [client.chat(request) for _ in range(4)]
    firsts = [next(stream) for stream in streams]
    cluster.remember_metrics()
    cluster.terminate()

    results = [None] * len(streams)

    def read(index):
        ids = list(firsts[index].chunk.token_ids)
        kind = ""
        for event in streams[index]:
            kind = event.WhichOneof("event")
            ids += event.chunk.token_ids
        results[index] = (ids, kind)

    readers = [threading.Thread(target=read, args=(i,)) for i in range(len(streams))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(120)
    assert results == [(list(expected), "complete")] * len(streams), cluster.log_text()
    assert cluster.process.wait(60) == 0
    for service in cluster.started["services"]:
        assert not alive(service["pid"]), service


def test_a_draining_cluster_refuses_new_requests(own_cluster, connect):
    cluster = own_cluster()
    client = connect(cluster)
    stream = client.chat(client.request("Tell me a long story.", max_tokens=400, ignore_eos=True))
    next(stream)
    watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(),
                                                             timeout=120)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    cluster.remember_metrics()
    cluster.terminate()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING

    def refused():
        try:
            list(client.chat(client.request("x", max_tokens=1), timeout=10))
            return False
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAVAILABLE

    eventually(refused, "UNAVAILABLE for a new request")
    list(stream)
    assert cluster.process.wait(60) == 0


def test_a_start_that_fails_is_tried_again(own_cluster, connect, tmp_path):
    """Neither a program that is missing for a while nor a record that cannot be written ends it."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("cogumi", *(f"cogumi-{service}" for service in SERVICES)):
        shutil.copy2(BIN / name, binaries / name)
    cluster = own_cluster(binaries=binaries)
    client = connect(cluster)
    router = binaries / "cogumi-router"
    victim = cluster.pid("router")
    router.rename(tmp_path / "away")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: "cogumi-router cannot start" in cluster.log_text(), cluster.log_text)
    assert client.ask("What is 2+2?", max_tokens=2)

    records = cluster.folder / "state/clusters"
    records.rename(tmp_path / "records")
    records.write_text("no folder")
    (tmp_path / "away").rename(router)
    eventually(lambda: "the cluster's record: " in cluster.log_text(), cluster.log_text)
    assert client.ask("What is 2+2?", max_tokens=2)
    records.unlink()
    (tmp_path / "records").rename(records)
    eventually(lambda: cluster.pid("router") != victim, cluster.log_text)
    cluster.terminate()
    assert cluster.process.wait(60) == 0


def test_a_second_signal_ends_a_gateway_that_hangs(own_cluster):
    cluster = own_cluster()
    gateway = cluster.pid("gateway")
    os.kill(gateway, signal.SIGSTOP)
    cluster.terminate()
    eventually(lambda: "draining" in cluster.log_text(), cluster.log_text)
    cluster.terminate()
    assert cluster.process.wait(60) == 0
    assert "it is killed" in cluster.log_text() and not alive(gateway)


def test_services_end_with_their_supervisor(own_cluster):
    cluster = own_cluster()
    pids = [service["pid"] for service in cluster.services().values()]
    assert all(alive(pid) for pid in pids)
    cluster.process.kill()
    cluster.process.wait()
    eventually(lambda: not any(alive(pid) for pid in pids), "the end of the services", 60)
