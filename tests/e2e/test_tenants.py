"""Tenants with tokens, roles and quotas: nobody sees another's data."""
import concurrent.futures
import http.client
import json
import threading

import grpc
import pytest
from test_contract import details

TOKENS = """
tokens:
  - {token: "acme-secret-0123456789", tenant: acme, roles: [user]}
  - {token: "globex-secret-0123456789", tenant: globex, roles: [user]}
  - {token: "quota-secret-0123456789", tenant: limited, roles: [user]}
  - {token: "operator-secret-0123456789", tenant: operations, roles: [operator]}
tenants:
  limited: {requests_per_minute: 3, concurrent_streams: 1}
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    from cluster import Cluster
    folder = tmp_path_factory.mktemp("guarded")
    tokens = folder / "tokens.yaml"
    tokens.write_text(TOKENS)
    tokens.chmod(0o600)
    running = Cluster(folder / "cluster", "--gateway.tokens", str(tokens))
    yield running
    running.stop()


def code_of(call):
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code()


def test_no_call_without_a_valid_token(guarded, connect, pb):
    for token in (None, "", "wrong-secret-0123456789", "acme-secret-012345678",
                  "acme-secret-01234567890"):
        client = connect(guarded, token)
        calls = [
            lambda: client.ask("x", max_tokens=1),
            lambda: list(client.complete(text="x")),
            lambda: client.turns("s"),
            lambda: client.stub.EraseSession(pb.gateway.EraseSessionRequest(session_id="s"),
                                             metadata=client.metadata),
            lambda: client.stub.ListModels(pb.gateway.ListModelsRequest(),
                                           metadata=client.metadata),
            lambda: client.stub.Explain(pb.gateway.ExplainRequest(request_id="x"),
                                        metadata=client.metadata),
        ]
        for call in calls:
            assert code_of(call) == grpc.StatusCode.UNAUTHENTICATED


def test_two_tenants_never_mix(guarded, connect, pb):
    acme = connect(guarded, "acme-secret-0123456789")
    globex = connect(guarded, "globex-secret-0123456789")
    acme.ask("Remember the canary ACME-1234.", session="shared", max_tokens=4)
    globex.ask("Remember the canary GLOBEX-5678.", session="shared", max_tokens=4)
    assert [t.user for t in acme.turns("shared")] == ["Remember the canary ACME-1234."]
    assert [t.user for t in globex.turns("shared")] == ["Remember the canary GLOBEX-5678."]
    _, _, complete = globex.answer(globex.request("What did I say?", session="shared",
                                                  max_tokens=4))
    acme.stub.EraseSession(pb.gateway.EraseSessionRequest(session_id="shared"),
                           metadata=acme.metadata)
    assert len(globex.turns("shared")) == 2 and len(acme.turns("shared")) == 0
    for word in ("ACME-1234", "GLOBEX-5678", "secret"):
        assert word not in guarded.log_text(), word


def test_two_tenants_at_once_answer_as_each_alone(guarded, connect):
    """The same session id for both, streams that interleave in one batch: each answer is the one
    that the tenant gets when nobody else asks."""
    tokens = {"acme": "acme-secret-0123456789", "globex": "globex-secret-0123456789"}
    questions = {"acme": ["My favourite fruit is the mango.", "Name three rivers.",
                          "Which fruit do I like?"],
                 "globex": ["My favourite fruit is the plum.", "Name three mountains.",
                            "Which fruit do I like?"]}

    def talk(tenant, session, turn_done=lambda: None):
        client = connect(guarded, tokens[tenant])
        told = []
        for question in questions[tenant]:
            pieces = []
            for event in client.chat(client.request(question, session=session, max_tokens=48,
                                                    ignore_eos=True)):
                pieces += event.chunk.token_ids
            told.append(pieces)
            turn_done()
        client.channel.close()
        return told

    alone = {tenant: talk(tenant, "alone") for tenant in tokens}
    assert alone["acme"] != alone["globex"]
    # Both begin each turn together, so that their tokens come out of the same steps.
    steps = guarded.value("decoder", "cogumi_engine_steps_total")
    for number in range(3):
        together = threading.Barrier(2, timeout=60)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            futures = {tenant: pool.submit(talk, tenant, f"together{number}", together.wait)
                       for tenant in tokens}
            for tenant, future in futures.items():
                assert future.result(120) == alone[tenant], tenant
    taken = guarded.value("decoder", "cogumi_engine_steps_total") - steps
    assert taken < 3 * 2 * 3 * 48, "the streams never shared a step"


def test_explain_is_for_operators(guarded, connect, pb):
    acme = connect(guarded, "acme-secret-0123456789")
    operator = connect(guarded, "operator-secret-0123456789")
    _, _, complete = acme.answer(acme.request("Hi", max_tokens=2))
    request = pb.gateway.ExplainRequest(request_id=complete.request_id)
    assert code_of(lambda: acme.stub.Explain(request, metadata=acme.metadata)) == (
        grpc.StatusCode.PERMISSION_DENIED)
    explained = operator.stub.Explain(request, metadata=operator.metadata)
    assert explained.tenant == "acme"
    assert code_of(lambda: operator.ask("x", max_tokens=1)) == grpc.StatusCode.PERMISSION_DENIED


def test_quota_of_requests(guarded, connect):
    client = connect(guarded, "quota-secret-0123456789")
    refused = None
    for _ in range(10):
        try:
            client.ask("x", max_tokens=1)
        except grpc.RpcError as error:
            refused = error
            break
    assert refused is not None and refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(refused)["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
    connection = http.client.HTTPConnection(guarded.http, timeout=10)
    connection.request("POST", "/v1/chat/completions",
                       json.dumps({"messages": [{"role": "user", "content": "x"}]}),
                       {"Content-Type": "application/json",
                        "Authorization": "Bearer quota-secret-0123456789"})
    response = connection.getresponse()
    assert response.status == 429 and int(response.getheader("Retry-After")) > 0
    # Another tenant is not held up by it.
    assert connect(guarded, "acme-secret-0123456789").ask("What is 2+2?", max_tokens=4)


def test_metrics_name_no_person_and_no_secret(guarded):
    connection = http.client.HTTPConnection(guarded.http, timeout=10)
    connection.request("GET", "/metrics", headers={
        "Authorization": "Bearer operator-secret-0123456789"})
    response = connection.getresponse()
    text = response.read().decode()
    assert response.status == 200
    for word in ("secret", "canary", "shared"):
        assert word not in text
    connection.request("GET", "/metrics")
    assert connection.getresponse().status == 401


def test_an_unauthenticated_http_call_is_told_so_in_openais_way(guarded):
    connection = http.client.HTTPConnection(guarded.http, timeout=10)
    connection.request("GET", "/v1/models")
    response = connection.getresponse()
    assert response.status == 401
    error = json.loads(response.read())["error"]
    assert error["type"] and error["message"]
