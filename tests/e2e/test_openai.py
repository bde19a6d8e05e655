"""The HTTP edge through the official `openai` package, and what it refuses."""
import http.client
import json

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
MODEL = ""


@pytest.fixture(scope="module")
def api(cluster):
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:
        global MODEL
        MODEL = client.models.list().data[0].id
        yield client


def post(cluster, path, body, headers=()):
    """(status, headers, parsed body) of a request made by hand."""
    connection = http.client.HTTPConnection(cluster.http, timeout=60)
    data = body if isinstance(body, (bytes, str)) else json.dumps(body)
    connection.request("POST", path, data, {"Content-Type": "application/json", **dict(headers)})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, response.headers, json.loads(text) if text else None


def test_models(api):
    models = api.models.list().data
    assert len(models) == 1 and models[0].object == "model"
    assert api.models.retrieve(models[0].id).id == models[0].id
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("gpt-99")


def test_plain_answer(api):
    answer = api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0,
                                         max_completion_tokens=32)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content and choice.message.role == "assistant"
    assert choice.finish_reason == "stop" and choice.index == 0
    assert answer.object == "chat.completion" and answer.system_fingerprint and answer.id
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0


def test_cached_tokens_are_reported(api):
    messages = [{"role": "user", "content": "Count the bridges of Konigsberg. " * 20}]
    usages = [api.chat.completions.create(model=MODEL, messages=messages, temperature=0,
                                          max_tokens=4).usage for _ in range(2)]
    first, second = (usage.prompt_tokens_details.cached_tokens for usage in usages)
    assert first < second
    assert usages[1].prompt_tokens - 65 < second < usages[1].prompt_tokens


def test_several_answers_share_their_prompt(api, cluster):
    messages = [{"role": "user", "content": "Name the towns along the river Danube. " * 20}]
    rows = cluster.value("decoder", "cogumi_engine_step_rows_total")
    answer = api.chat.completions.create(model=MODEL, messages=messages, n=4, max_tokens=4, seed=1)
    rows = cluster.value("decoder", "cogumi_engine_step_rows_total") - rows
    assert len(answer.choices) == 4
    assert answer.usage.prompt_tokens > 150
    assert rows < 2 * answer.usage.prompt_tokens, (rows, answer.usage)


def test_streaming_is_the_same_answer_in_pieces(api):
    plain = api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0,
                                        max_tokens=32)
    chunks = list(api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0,
                                              max_tokens=32, stream=True,
                                              stream_options={"include_usage": True}))
    assert len(chunks) > 3 and len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}
    assert chunks[-1].choices == [] and chunks[-1].usage == plain.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_without_stream_options_no_usage_is_sent(api):
    chunks = list(api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0,
                                              max_tokens=4, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_events_on_the_wire(cluster):
    connection = http.client.HTTPConnection(cluster.http, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(
        {"messages": QUESTION, "stream": True, "temperature": 0, "max_tokens": 3}),
        {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.getheader("Content-Type").startswith("text/event-stream")
    events = [e for e in response.read().decode().split("\n\n") if e]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"


def test_several_choices(api):
    answer = api.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Invent a name for a cat."}], n=3,
        temperature=1.2, seed=11, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    streamed = {0: "", 1: "", 2: ""}
    for chunk in api.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Invent a name for a cat."}], n=3,
            temperature=1.2, seed=11, max_tokens=12, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == {c.index: c.message.content for c in answer.choices}


def test_stop_and_seed_and_length(api):
    stopped = api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0,
                                          stop=["Paris"], max_tokens=32)
    assert "Paris" not in stopped.choices[0].message.content
    assert stopped.choices[0].finish_reason == "stop"

    def sampled():
        return api.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=1.5, seed=5, max_tokens=16)
    assert sampled().choices[0].message.content == sampled().choices[0].message.content
    cut = api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=2)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2


def test_log_probabilities(api):
    answer = api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0,
                                         max_tokens=6, logprobs=True, top_logprobs=2)
    rows = answer.choices[0].logprobs.content
    assert len(rows) == 6
    for row in rows:
        assert row.logprob <= 0 and len(row.top_logprobs) == 2
        assert bytes(row.bytes).decode(errors="replace") == row.token or "\ufffd" in row.token
    assert "".join(row.token for row in rows) == answer.choices[0].message.content


def test_completions(api):
    answer = api.completions.create(model=MODEL, prompt="The capital of France is", temperature=0,
                                    max_tokens=8)
    assert "Paris" in answer.choices[0].text and answer.object == "text_completion"
    pieces = list(api.completions.create(model=MODEL, prompt="The capital of France is",
                                         temperature=0, max_tokens=8, stream=True))
    assert "".join(p.choices[0].text for p in pieces if p.choices) == answer.choices[0].text


def test_session_by_header(api, client):
    headers = {"Cogumi-Session": "by-header"}
    first = api.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "My name is Ada."}], temperature=0,
        max_tokens=12, extra_headers=headers)
    second = api.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is my name?"}], temperature=0,
        max_tokens=12, extra_headers=headers)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    # The same store as gRPC's.
    assert [t.user for t in client.turns("by-header")] == ["My name is Ada.", "What is my name?"]


@pytest.mark.parametrize("field, value", [
    ("temperature", -0.1), ("temperature", 2.1), ("temperature", "warm"), ("top_p", 0),
    ("top_p", 1.1), ("n", 0), ("n", 1000), ("n", 1.5), ("max_tokens", 0), ("max_tokens", -1),
    ("max_completion_tokens", 0), ("presence_penalty", -2.1), ("presence_penalty", 2.1),
    ("frequency_penalty", 2.1), ("frequency_penalty", -2.1), ("max_tokens", 8193),
    ("top_logprobs", 21), ("top_logprobs", -1), ("logprobs", "yes"),
    ("stop", ["x"] * 17), ("stop", [""]), ("stop", 5), ("seed", "x"), ("logit_bias", {"5": 101}),
    ("logit_bias", {"-1": 1}), ("logit_bias", {"x": 1}), ("messages", []), ("messages", "hello"),
    ("messages", [{"role": "wizard", "content": "x"}]), ("messages", [{"role": "user"}]),
    ("stream", "yes"), ("stream_options", {"include_usage": True}), ("model", 5),
])
def test_bad_values_are_refused_by_name(cluster, field, value):
    body = {"messages": QUESTION, "max_tokens": 1, field: value}
    if field == "max_completion_tokens":
        del body["max_tokens"]
    if field == "top_logprobs":
        body["logprobs"] = True
    status, _, answer = post(cluster, "/v1/chat/completions", body)
    assert status == 400, answer
    error = answer["error"]
    assert error["type"] == "invalid_request_error"
    assert field in (error["param"] or "") or field in error["message"], error


NUMBERS = ("temperature", "top_p", "n", "max_tokens", "max_completion_tokens", "presence_penalty",
           "frequency_penalty", "top_logprobs", "seed")


@pytest.mark.parametrize("literal", ["1e308", "-1e308", "123456789012345678901234567890", "{}", "[]",
                                     '"x"', "true"])
@pytest.mark.parametrize("field", NUMBERS)
def test_huge_numbers_and_other_types_are_refused_by_name(cluster, field, literal):
    others = '"logprobs": true,' if field == "top_logprobs" else ""
    status, _, answer = post(cluster, "/v1/chat/completions",
                             '{"messages": %s, %s "%s": %s}' % (json.dumps(QUESTION), others, field,
                                                                literal))
    assert status == 400, answer
    assert field in (answer["error"]["param"] or "") or field in answer["error"]["message"], answer


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("field", NUMBERS)
def test_what_is_no_number_is_no_request(cluster, field, literal):
    """JSON knows neither NaN nor infinities."""
    status, _, answer = post(cluster, "/v1/chat/completions",
                             '{"messages": %s, "%s": %s}' % (json.dumps(QUESTION), field, literal))
    assert status == 400 and answer["error"]["message"], answer


@pytest.mark.parametrize("bias", ['{"5": 1e308}', '{"5": -100.01}', '{"5": "x"}', '{"5": null}',
                                  '{"49152": 1}', '{"99999999999999999999": 1}', '{"5.5": 1}', "[]",
                                  '{"": 1}', "5"])
def test_bad_biases_are_refused_by_name(cluster, bias):
    status, _, answer = post(cluster, "/v1/chat/completions",
                             '{"messages": %s, "max_tokens": 1, "logit_bias": %s}'
                             % (json.dumps(QUESTION), bias))
    assert status == 400 and "logit_bias" in str(answer["error"]), answer


@pytest.mark.parametrize("field, value", [
    ("max_tokens", 0), ("max_tokens", 8193), ("temperature", -0.1), ("temperature", 2.1),
    ("logprobs", -1), ("logprobs", 21), ("frequency_penalty", -2.1), ("n", 0), ("prompt", 5),
    ("prompt", [-1]), ("prompt", [49152]), ("prompt", {}), ("stop", [""]), ("seed", -1.5)])
def test_completions_refuse_bad_values_by_name(cluster, field, value):
    body = {"prompt": "x", "max_tokens": 1, field: value}
    status, _, answer = post(cluster, "/v1/completions", body)
    assert status == 400, answer
    shown = str(answer["error"])
    assert field in shown or (field == "prompt" and "tokens" in shown), answer


@pytest.mark.parametrize("field, value", [
    ("tools", [{"type": "function", "function": {"name": "f"}}]), ("tool_choice", "auto"),
    ("functions", [{"name": "f"}]), ("response_format", {"type": "json_object"}),
    ("audio", {}), ("modalities", ["audio"]), ("prediction", {}), ("best_of", 2),
    ("unheard_of", 1), ("temprature", 0.5),
])
def test_unsupported_fields_are_a_400_that_names_them(cluster, field, value):
    status, _, answer = post(cluster, "/v1/chat/completions",
                             {"messages": QUESTION, "max_tokens": 1, field: value})
    assert status == 400 and answer["error"]["param"] == field, answer


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": 1e999}',
                                  b"[" * 100000])
def test_what_is_no_request_is_a_400(cluster, body):
    status, _, answer = post(cluster, "/v1/chat/completions", body)
    assert status == 400 and answer["error"]["message"]


def test_too_large_a_body_is_refused(cluster):
    # The server may close before it has read everything.
    try:
        status, _, _ = post(cluster, "/v1/chat/completions", b" " * (8 << 20))
        assert status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass


def test_other_paths_and_methods(cluster):
    assert post(cluster, "/v1/unheard", {})[0] == 404
    connection = http.client.HTTPConnection(cluster.http, timeout=10)
    connection.request("GET", "/v1/chat/completions")
    assert connection.getresponse().status == 405
    connection = http.client.HTTPConnection(cluster.http, timeout=10)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200


def test_errors_reach_the_package_as_its_own(api):
    with pytest.raises(openai.BadRequestError) as error:
        api.chat.completions.create(model=MODEL, messages=QUESTION, temperature=5)
    assert error.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as error:
        api.chat.completions.create(model="gpt-99", messages=QUESTION)
    assert "gpt-99" in str(error.value)


def test_cors_only_for_listed_origins(own_cluster):
    cluster = own_cluster("--gateway.cors-origins", "https://chat.example.org")

    def allowed(origin):
        connection = http.client.HTTPConnection(cluster.http, timeout=10)
        connection.request("OPTIONS", "/v1/chat/completions", headers={
            "Origin": origin, "Access-Control-Request-Method": "POST"})
        return connection.getresponse().getheader("Access-Control-Allow-Origin")
    assert allowed("https://chat.example.org") == "https://chat.example.org"
    assert allowed("https://evil.example.org") is None


def test_no_scores_or_routes_for_a_person(cluster):
    _, headers, answer = post(cluster, "/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Write a Python function."}], "max_tokens": 3})
    shown = (str(headers) + json.dumps(answer)).lower()
    for word in ("domain", "margin", "confidence", "escalat", "entropy", "lexicon", "tier"):
        assert word not in shown, word
