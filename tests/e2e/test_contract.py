"""Reflection, health, deadlines and rich errors; test_bad_input.py has every field's bad values."""
import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase)
from grpc_status import rpc_status

from cluster import SERVICES

OWN = {
    "gateway": {"cogumi.v1.GatewayService"},
    "decoder": {"cogumi.v1.DecoderService"},
    "router": {"cogumi.v1.RouterService", "cogumi.v1.EscalationService",
               "cogumi.v1.ConfidenceService"},
    "modifiers": {"cogumi.v1.ModifierService"},
}
NAN, INFINITY = float("nan"), float("inf")
INT_MAX, INT_MIN = 2**31 - 1, -2**31


def details(error):
    """google.rpc details of an error, by message type."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error}"
    found = {}
    for detail in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest,
                     error_details_pb2.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                message = kind()
                detail.Unpack(message)
                found[kind.DESCRIPTOR.name] = message
    return found


@pytest.fixture(params=SERVICES)
def service(request, cluster):
    channel = grpc.insecure_channel(cluster.address(request.param))
    yield request.param, channel
    channel.close()


def test_reflection_lists_and_describes_every_service(service):
    name, channel = service
    database = ProtoReflectionDescriptorDatabase(channel)
    listed = set(database.get_services())
    assert OWN[name] <= listed
    assert "grpc.health.v1.Health" in listed
    for full_name in OWN[name]:
        file = database.FindFileContainingSymbol(full_name)
        assert full_name.rsplit(".", 1)[1] in [s.name for s in file.service]


def test_health_check_and_watch(service):
    name, channel = service
    stub = health_pb2_grpc.HealthStub(channel)
    for full_name in ("", *OWN[name]):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=full_name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, full_name
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=10)
    assert next(iter(watch)).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    with pytest.raises(grpc.RpcError) as error:
        stub.Check(health_pb2.HealthCheckRequest(service="unheard.of"), timeout=10)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_deadline_ends_the_answer_and_the_work(client, cluster):
    before = cluster.value("decoder", "vllm:generation_tokens_total")
    with pytest.raises(grpc.RpcError) as error:
        list(client.chat(client.request("Tell me a very long story.", max_tokens=8000,
                                        ignore_eos=True), timeout=0.5))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    cluster.await_idle()
    assert cluster.value("decoder", "vllm:generation_tokens_total") - before < 8000


def refused(client, request, code=grpc.StatusCode.INVALID_ARGUMENT):
    with pytest.raises(grpc.RpcError) as error:
        list(client.stub.Chat(request, timeout=30))
    assert error.value.code() == code, error.value
    return error.value


def test_alternatives_need_log_probabilities(client):
    error = refused(client, client.request("x", top_logprobs=3))
    assert "top_logprobs" in error.details()


def test_a_conversation_longer_than_the_context_is_refused_with_both_numbers(client):
    error = None
    with pytest.raises(grpc.RpcError) as caught:
        list(client.chat(client.request("word " * 9000, max_tokens=1)))
    error = caught.value
    assert error.code() in (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.INVALID_ARGUMENT)
    assert "8192" in error.details(), error.details()


def test_malformed_requests_are_refused_by_field(client, pb):
    message = pb.common.Message
    user = message(role=pb.common.ROLE_USER, content="x")
    chat = pb.gateway.ChatRequest
    cases = [
        (chat(), "messages"),
        (chat(messages=[message(role=pb.common.ROLE_UNSPECIFIED, content="x")]), "messages[0].role"),
        (chat(messages=[message(role=77, content="x")]), "messages[0].role"),
        (chat(messages=[user], session_id="no spaces"), "session_id"),
        (chat(messages=[user], session_id="x" * 65), "session_id"),
        (chat(messages=[user], session_id="../../etc"), "session_id"),
        (chat(messages=[user], priority=101), "priority"),
        (chat(messages=[user], priority=-101), "priority"),
        (chat(messages=[user], priority=INT_MAX), "priority"),
        (chat(messages=[user] * 2000), "messages"),
        (chat(messages=[message(role=pb.common.ROLE_USER, content="x" * (2 << 20))]), "messages"),
        (chat(messages=[user, user], session_id="s"), "messages[0].role"),
    ]
    for request, field in cases:
        found = details(refused(client, request))
        fields = [v.field for v in found["BadRequest"].field_violations]
        assert field in fields, (field, fields)


def test_an_unknown_model_is_named(client, pb):
    request = client.request("x", max_tokens=1)
    request.model = "gpt-99"
    error = refused(client, request, grpc.StatusCode.NOT_FOUND)
    assert "gpt-99" in error.details()


def test_what_is_not_built_yet_is_refused_by_name(client, pb):
    grammar = pb.common.Grammar(json_schema="{}")
    for field, value in (("grammar", grammar), ("tools", [pb.common.Tool(name="f")])):
        request = client.request("x", max_tokens=1)
        if field == "tools":
            request.tools.extend(value)
        else:
            request.grammar.CopyFrom(value)
        error = refused(client, request, grpc.StatusCode.UNIMPLEMENTED)
        assert field in error.details()


def test_complete_needs_an_input(client):
    with pytest.raises(grpc.RpcError) as error:
        list(client.complete())
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_decoder_answers_for_tokens_and_scores(cluster, pb):
    with grpc.insecure_channel(cluster.address("decoder")) as channel:
        stub = pb.decoder_grpc.DecoderServiceStub(channel)
        text = "The capital of France is Paris 🙂."
        ids = stub.Tokenize(pb.decoder.TokenizeRequest(text=text), timeout=10).ids
        back = stub.Detokenize(pb.decoder.DetokenizeRequest(ids=ids), timeout=10)
        assert back.text == text and back.raw == text.encode()
        scored = stub.Score(pb.decoder.ScoreRequest(text=text, top_logprobs=2), timeout=30)
        assert list(scored.token_ids) == list(ids)
        assert len(scored.logprobs) == len(ids) - 1
        assert [row.token_id for row in scored.logprobs] == list(ids[1:])
        assert all(row.logprob <= 0 and len(row.top) == 2 for row in scored.logprobs)
        info = stub.ModelInfo(pb.decoder.ModelInfoRequest(), timeout=10)
        assert info.model.context_length == 8192 and info.kv_pages >= info.kv_pages_free > 0


def test_router_answers_and_refuses(cluster, pb):
    with grpc.insecure_channel(cluster.address("router")) as channel:
        stub = pb.router_grpc.RouterServiceStub(channel)
        question = pb.common.Message(role=pb.common.ROLE_USER,
                                     content="Write a Python function that sorts a list.")
        route = stub.Route(pb.router.RouteRequest(messages=[question]), timeout=10)
        assert route.domain == pb.router.DOMAIN_CODE and route.tier == "base"
        with pytest.raises(grpc.RpcError) as error:
            stub.Route(pb.router.RouteRequest(), timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        confidence = pb.router_grpc.ConfidenceServiceStub(channel)
        good = confidence.Assess(pb.router.AssessRequest(
            logprobs=[-0.1, -0.2], margins=[3.0, 2.0], entropies=[0.1, 0.2], prompt_tokens=5,
            domain=pb.router.DOMAIN_GENERAL), timeout=10)
        assert 0 <= good.confidence <= 1 and not good.calibrated


def test_a_watch_begins_with_what_is_there(cluster, pb):
    with grpc.insecure_channel(cluster.address("modifiers")) as channel:
        stub = pb.modifiers_grpc.ModifierServiceStub(channel)
        watch = stub.Watch(pb.modifiers.WatchRequest(), timeout=10)
        kinds = []
        for change in watch:
            kinds.append(change.type)
            if change.type == pb.modifiers.CHANGE_TYPE_SYNCED:
                break
        watch.cancel()
        assert kinds[-1] == pb.modifiers.CHANGE_TYPE_SYNCED
