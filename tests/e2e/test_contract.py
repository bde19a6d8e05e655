"""Reflection, health, deadlines, rich errors, and bad input of every field."""
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


# Field, values outside its range, values at the edge of it.
SAMPLING = [
    ("temperature", [-0.001, 2.001, NAN, INFINITY, -INFINITY, 1e30], [0, 2]),
    ("top_k", [-1, INT_MIN, 49153, INT_MAX], [0, 1, 49152]),
    ("top_p", [0, -0.1, 1.001, NAN, INFINITY, -1e30], [0.001, 1]),
    ("min_p", [-0.001, 1, NAN, INFINITY], [0, 0.999]),
    ("presence_penalty", [-2.001, 2.001, NAN, INFINITY, -INFINITY], [-2, 2]),
    ("frequency_penalty", [-2.001, 2.001, NAN, INFINITY, -INFINITY], [-2, 2]),
    ("repetition_penalty", [0, -1, 10.001, NAN, INFINITY], [0.01, 10]),
    ("max_tokens", [0, -1, INT_MIN, 8193, INT_MAX], [1]),
    ("top_logprobs", [-1, 21, INT_MIN, INT_MAX], [0, 20]),
    ("stop", [[""], ["x" * 257], ["x"] * 17], [["x"], ["x" * 256], ["x"] * 16]),
    ("stop_token_ids", [[-1], [49152], [INT_MAX], [INT_MIN]], [[0], [49151]]),
    ("logit_bias", [{-1: 0.0}, {49152: 0.0}, {INT_MAX: 0.0}, {5: 100.01}, {5: -100.01},
                    {5: NAN}, {5: INFINITY}], [{5: 100.0}, {49151: -100.0}]),
]


def sampling_of(field, value):
    sampling = {"max_tokens": 1, field: value}
    if field == "top_logprobs":
        sampling["logprobs"] = True
    return sampling


@pytest.mark.parametrize("field, value", [
    pytest.param(field, value, id=f"{field}={str(value)[:24]}")
    for field, bad, _ in SAMPLING for value in bad])
def test_sampling_outside_its_range_is_refused_by_name(client, field, value):
    if field == "max_tokens" and value > 8192:
        # More than the context holds is no error of the field: it is cut to what is left, or it
        # overflows. Either way the caller learns which number was too large.
        with_room = client.request("x", max_tokens=value)
        try:
            stream = list(client.chat(with_room, timeout=0.2))
            assert stream[-1].complete.usage.completion_tokens <= 8192
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT,
                                    grpc.StatusCode.OUT_OF_RANGE,
                                    grpc.StatusCode.DEADLINE_EXCEEDED)
        return
    error = refused(client, client.request("x", **sampling_of(field, value)))
    found = details(error)
    fields = [v.field for v in found["BadRequest"].field_violations]
    assert any(field in name for name in fields), fields
    assert field in error.details()
    assert found["ErrorInfo"].domain == "cogumi"


@pytest.mark.parametrize("field, value", [
    pytest.param(field, value, id=f"{field}={str(value)[:24]}")
    for field, _, good in SAMPLING for value in good])
def test_sampling_at_the_edge_of_its_range_is_taken(client, field, value):
    client.answer(client.request("x", **sampling_of(field, value)))


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
    for field, value in (("grammar", grammar), ("tools", [pb.common.Tool(name="f")]),
                         ("adapter", "some-adapter")):
        request = client.request("x", max_tokens=1)
        if field == "tools":
            request.tools.extend(value)
        elif field == "grammar":
            request.grammar.CopyFrom(value)
        else:
            request.adapter = value
        error = refused(client, request, grpc.StatusCode.UNIMPLEMENTED)
        assert field in error.details()


def test_complete_refuses_bad_tokens(client, pb):
    for ids in ([], [-1], [49152], [INT_MAX], [INT_MIN], [1] * 8193):
        with pytest.raises(grpc.RpcError) as error:
            list(client.complete(tokens=pb.common.TokenIds(ids=ids)))
        assert error.value.code() in (grpc.StatusCode.INVALID_ARGUMENT,
                                      grpc.StatusCode.OUT_OF_RANGE), (ids[:3], error.value)
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
        for ids in ([-1], [49152], [INT_MAX]):
            with pytest.raises(grpc.RpcError) as error:
                stub.Detokenize(pb.decoder.DetokenizeRequest(ids=ids), timeout=10)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        for top in (-1, 21, INT_MAX):
            with pytest.raises(grpc.RpcError) as error:
                stub.Score(pb.decoder.ScoreRequest(text="x y", top_logprobs=top), timeout=10)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


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
        for bad in (NAN, INFINITY, 0.5):
            with pytest.raises(grpc.RpcError) as error:
                confidence.Assess(pb.router.AssessRequest(
                    logprobs=[bad], margins=[1.0], entropies=[0.1]), timeout=10)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, bad


def test_modifiers_refuse_bad_names_and_digests(cluster, pb):
    with grpc.insecure_channel(cluster.address("modifiers")) as channel:
        stub = pb.modifiers_grpc.ModifierServiceStub(channel)
        for digest in ("", "../../etc/passwd", "g" * 64, "a" * 63, "A" * 64):
            with pytest.raises(grpc.RpcError) as error:
                list(stub.Fetch(pb.modifiers.FetchRequest(digest=digest), timeout=10))
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, digest
        with pytest.raises(grpc.RpcError) as error:
            list(stub.Fetch(pb.modifiers.FetchRequest(digest="a" * 64), timeout=10))
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        for name in ("", "Upper", "../x", "x" * 65):
            with pytest.raises(grpc.RpcError) as error:
                stub.Register(pb.modifiers.RegisterRequest(name=name, path="/nowhere"), timeout=10)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, name
        watch = stub.Watch(pb.modifiers.WatchRequest(), timeout=10)
        kinds = []
        for change in watch:
            kinds.append(change.type)
            if change.type == pb.modifiers.CHANGE_TYPE_SYNCED:
                break
        watch.cancel()
        assert kinds[-1] == pb.modifiers.CHANGE_TYPE_SYNCED
