"""Bad input of every field of every call: just outside its range, NaN, infinite, huge.

The calls and their fields are read from the contracts: a field without a row here is a failure, so
that a new one is not forgotten.
"""
import contextlib
import dataclasses

import grpc
import pytest
from test_contract import INFINITY, INT_MAX, INT_MIN, NAN, details

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
VOCABULARY, CONTEXT = 49152, 8192
UINT64_MAX = 2**64 - 1
MEBIBYTE = 1 << 20
NO_ROLE = [0, 77, -1]


@dataclasses.dataclass
class Row:
    """Values of a field that are refused, and values at the edge that are taken. A bad value is
    refused with INVALID_ARGUMENT naming the field, or it is a pair of value and status."""
    bad: list = dataclasses.field(default_factory=list)
    good: list = dataclasses.field(default_factory=list)
    named: str = ""  # how the error names the field, when not by its own name


@dataclasses.dataclass
class Refused:
    value: object
    code: grpc.StatusCode


SWITCH = Row(good=[False, True])  # a bool has no other value
IDS = [[-1], [VOCABULARY], [INT_MAX], [INT_MIN]]
PROMPT_IDS = Row([[], *IDS, Refused([1] * (CONTEXT + 1), OUT_OF_RANGE),
                  Refused([1] * CONTEXT, OUT_OF_RANGE)], [[0], [VOCABULARY - 1]], "tokens")
SESSION = Row(["no spaces", "x" * 65, "../../etc", "\u00e9", "x" * MEBIBYTE], ["x" * 64, "a-_Z9"])
PRIORITY = Row([-101, 101, INT_MIN, INT_MAX], [-100, 100])
MODEL = Row([Refused("gpt-99", NOT_FOUND), Refused("x" * MEBIBYTE, NOT_FOUND)], [""])
SPECULATION = Row([-1, 77, INT_MAX], [0, 1])
ADAPTER = Row(["x" * 65, "x" * MEBIBYTE, Refused("some-adapter", NOT_FOUND),
               Refused("../x", NOT_FOUND), Refused("a" * 64, NOT_FOUND)], [""])
NOT_BUILT = {"grammar": Row([Refused("grammar", UNIMPLEMENTED)]),
             "tools": Row([Refused("tools", UNIMPLEMENTED)])}
TOP_LOGPROBS = Row([-1, 21, INT_MIN, INT_MAX], [0, 20])
SAMPLING = {
    "temperature": Row([-0.001, 2.001, NAN, INFINITY, -INFINITY, 1e30], [0, 2]),
    "top_k": Row([-1, INT_MIN, VOCABULARY + 1, INT_MAX], [0, 1, VOCABULARY]),
    "top_p": Row([0, -0.1, 1.001, NAN, INFINITY, -1e30], [0.001, 1]),
    "min_p": Row([-0.001, 1, NAN, INFINITY, 1e30], [0, 0.999]),
    "presence_penalty": Row([-2.001, 2.001, NAN, INFINITY, -INFINITY, 1e30], [-2, 2]),
    "frequency_penalty": Row([-2.001, 2.001, NAN, INFINITY, -INFINITY, 1e30], [-2, 2]),
    "repetition_penalty": Row([0, -1, 10.001, NAN, INFINITY, 1e30], [0.01, 10]),
    "seed": Row([], [0, 1, 2**63, UINT64_MAX]),
    "logit_bias": Row([{-1: 0.0}, {VOCABULARY: 0.0}, {INT_MAX: 0.0}, {INT_MIN: 0.0}, {5: 100.01},
                       {5: -100.01}, {5: NAN}, {5: INFINITY},
                       {i: 1.0 for i in range(VOCABULARY + 1)}], [{5: 100.0}, {VOCABULARY - 1: -100.0}]),
    # The whole context is in its range, but a prompt has no room beside it.
    "max_tokens": Row([0, -1, INT_MIN, CONTEXT + 1, INT_MAX, Refused(CONTEXT, OUT_OF_RANGE)], [1]),
    "stop": Row([[""], ["x" * 257], ["x"] * 17, ["x" * MEBIBYTE]],
                [["x"], ["x" * 256], ["x"] * 16]),
    "stop_token_ids": Row([*IDS, [1] * (VOCABULARY + 1)], [[0], [VOCABULARY - 1]]),
    "ignore_eos": SWITCH,
    "logprobs": SWITCH,
    "top_logprobs": TOP_LOGPROBS,
}
SAMPLING = {f"sampling.{name}": row for name, row in SAMPLING.items()}
ROUTED = {"messages.role": Row(NO_ROLE, [3, 2]),
          "messages.content": Row(["x" * (4 * MEBIBYTE + 1)], ["", "x" * MEBIBYTE], "messages")}
PROMPT = {"text": Row(["x" * (4 * MEBIBYTE + 1)], [" "]),
          "messages.messages.role": Row(NO_ROLE, [2]),
          "messages.messages.content": Row(["x" * (4 * MEBIBYTE + 1)], ["x"], "messages"),
          "parse_special": SWITCH}
DIGEST = Row(["", "g" * 64, "a" * 63, "a" * 65, "A" * 64, "../../etc/passwd", "a" * MEBIBYTE,
              Refused("a" * 64, NOT_FOUND)])
NAME = Row(["", "Upper", "../x", "x" * 65, "x" * MEBIBYTE, "a b", Refused("x" * 64, NOT_FOUND)])

TABLE = {
    "GatewayService.Chat": {
        "model": MODEL, "session_id": SESSION, "priority": PRIORITY, "speculation": SPECULATION,
        "messages.role": Row(NO_ROLE, [2]),
        "messages.content": Row(["x" * (MEBIBYTE + 1)], ["x", ""], "messages"),
        "adapter": ADAPTER, **NOT_BUILT, **SAMPLING},
    "GatewayService.Complete": {
        "model": MODEL, "priority": PRIORITY, "speculation": SPECULATION,
        "text": Row(["x" * (MEBIBYTE + 1)], [" "]), "tokens.ids": PROMPT_IDS,
        "parse_special": SWITCH, "adapter": ADAPTER, "grammar": NOT_BUILT["grammar"],
        **SAMPLING},
    "GatewayService.GetSession": {"session_id": Row(["", *SESSION.bad], SESSION.good)},
    "GatewayService.EraseSession": {"session_id": Row(["", *SESSION.bad], SESSION.good)},
    "GatewayService.ListModels": {},
    "GatewayService.Explain": {"request_id": Row(
        ["", "a b", "x" * 129, "\u00e9", "x" * MEBIBYTE, Refused("x" * 128, NOT_FOUND)])},
    "DecoderService.Generate": {
        "tokens.ids": PROMPT_IDS, "priority": PRIORITY, "speculation": SPECULATION,
        "session_id": Row([], ["", "a b", "x" * MEBIBYTE]),  # a hint of no meaning here
        "features": SWITCH, **PROMPT, "adapter": ADAPTER, **NOT_BUILT, **SAMPLING},
    "DecoderService.Tokenize": PROMPT,
    "DecoderService.Detokenize": {"ids": Row([*IDS, [1] * (MEBIBYTE + 1)], [[], [0, VOCABULARY - 1]]),
                                  "special": SWITCH},
    "DecoderService.Score": {
        "text": PROMPT["text"],
        "tokens.ids": Row([[], *IDS, Refused([1] * (CONTEXT + 1), OUT_OF_RANGE)],
                          [[0], [VOCABULARY - 1]], "tokens"),
        "parse_special": SWITCH, "top_logprobs": TOP_LOGPROBS},
    "DecoderService.ModelInfo": {},
    "RouterService.Route": ROUTED,
    "EscalationService.Detect": {**ROUTED, "messages.role": Row([*NO_ROLE, 3], [2])},
    "ConfidenceService.Assess": {
        "logprobs": Row([[0.5], [NAN], [INFINITY], [-INFINITY], [1e30], []],
                        [[0], [-30]]),
        "margins": Row([[-0.5], [NAN], [INFINITY], [-1e30], [1, 1]], [[0], [30]]),
        "entropies": Row([[-0.5], [NAN], [INFINITY], [-1e30], [1, 1]], [[0], [10]]),
        "domain": Row([-1, 77, INT_MAX], [0, 4]),
        "prompt_tokens": Row([-1, (1 << 24) + 1, INT_MIN, INT_MAX], [0, 1 << 24]),
        "finish_reason": Row([-1, 77, INT_MAX], [0, 2])},
    "ModifierService.List": {},
    "ModifierService.Get": {"name": NAME, "digest": DIGEST},
    "ModifierService.Fetch": {"digest": DIGEST},
    "ModifierService.Watch": {},
    "ModifierService.Register": {
        "name": Row(NAME.bad[:-1]),
        "path": Row(["", "relative/../path", "x" * 4097, "/" + "x" * MEBIBYTE])},
    "ModifierService.Remove": {"name": NAME},
}
# Messages whose fields cannot be wrong while the whole is refused by name.
WHOLE = {"cogumi.v1.Grammar", "cogumi.v1.Tool"}
# By proto file, the process that serves it.
SERVED_BY = {"gateway": "gateway", "decoder": "decoder", "router": "router",
             "modifiers": "modifiers"}


def methods(pb):
    """(name, proto module, method) of every call in the contracts."""
    for module in SERVED_BY:
        for service in getattr(pb, module).DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"{service.name}.{method.name}", module, method


def fields(message, prefix=""):
    for field in message.fields:
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry or inner.full_name in WHOLE:
            yield prefix + field.name
        else:
            yield from fields(inner, f"{prefix}{field.name}.")


def base_request(pb, name):
    """A request that is taken as it is."""
    common = pb.common
    user = common.Message(role=common.ROLE_USER, content="x")
    sampling = common.SamplingParams(temperature=0, max_tokens=1)
    messages = common.Messages(messages=[user])
    return {
        "GatewayService.Chat": lambda: pb.gateway.ChatRequest(messages=[user], sampling=sampling),
        "GatewayService.Complete": lambda: pb.gateway.CompleteRequest(text="x", sampling=sampling),
        "GatewayService.GetSession": lambda: pb.gateway.GetSessionRequest(session_id="s"),
        "GatewayService.EraseSession": lambda: pb.gateway.EraseSessionRequest(session_id="s"),
        "GatewayService.Explain": lambda: pb.gateway.ExplainRequest(request_id="x"),
        "DecoderService.Generate": lambda: pb.decoder.GenerateRequest(
            messages=messages, sampling=sampling),
        "DecoderService.Tokenize": lambda: pb.decoder.TokenizeRequest(messages=messages),
        "DecoderService.Detokenize": lambda: pb.decoder.DetokenizeRequest(ids=[1]),
        "DecoderService.Score": lambda: pb.decoder.ScoreRequest(text="x y"),
        "RouterService.Route": lambda: pb.router.RouteRequest(messages=[user, user]),
        "EscalationService.Detect": lambda: pb.router.DetectRequest(messages=[user]),
        "ConfidenceService.Assess": lambda: pb.router.AssessRequest(
            logprobs=[-0.1], margins=[1], entropies=[0.1]),
        "ModifierService.Get": lambda: pb.modifiers.GetRequest(name="x"),
        "ModifierService.Fetch": lambda: pb.modifiers.FetchRequest(digest="a" * 64),
        "ModifierService.Register": lambda: pb.modifiers.RegisterRequest(name="x", path="/x"),
        "ModifierService.Remove": lambda: pb.modifiers.RemoveRequest(name="x"),
    }[name]()


def put(pb, request, path, value):
    """Sets the field, in the first message of a list."""
    *outer, name = path.split(".")
    for step in outer:
        inner = getattr(request, step)
        request = inner[0] if hasattr(inner, "add") else inner
    target = getattr(request, name)
    if value == "grammar":
        target.CopyFrom(pb.common.Grammar(regex="x"))
    elif value == "tools":
        target.add(name="f")
    elif isinstance(value, dict):
        target.clear()
        target.update(value)
    elif isinstance(value, list):
        if not value:
            getattr(request, "SetInParent", lambda: None)()
        del target[:]
        target.extend(value)
    else:
        setattr(request, name, value)
    if path == "sampling.top_logprobs":
        request.logprobs = True


@pytest.fixture(scope="module")
def call(cluster, pb):
    """Calls a method by its name and returns all that it answers."""
    with contextlib.ExitStack() as channels:
        callables = {}
        for name, module, method in methods(pb):
            channel = channels.enter_context(grpc.insecure_channel(
                cluster.grpc if module == "gateway" else cluster.address(SERVED_BY[module]),
                options=[("grpc.max_send_message_length", -1)]))
            stub = getattr(getattr(pb, f"{module}_grpc"), f"{method.containing_service.name}Stub")(
                channel)
            callables[name] = (getattr(stub, method.name), method.server_streaming)

        def run(name, request):
            function, streams = callables[name]
            answer = function(request, timeout=60)
            return list(answer) if streams else [answer]
        yield run


def test_every_field_of_every_call_has_a_row(pb):
    wanted = {name: set(fields(method.input_type)) for name, _, method in methods(pb)}
    assert {name: set(rows) for name, rows in TABLE.items()} == wanted


def cases(kind):
    for name, rows in TABLE.items():
        for path, row in rows.items():
            for number, value in enumerate(getattr(row, kind)):
                yield pytest.param(name, path, value, id=f"{name}-{path}-{number}")


@pytest.mark.parametrize("name, path, value", cases("bad"))
def test_a_bad_value_is_refused_by_name(call, pb, name, path, value):
    code = INVALID
    if isinstance(value, Refused):
        value, code = value.value, value.code
    request = base_request(pb, name)
    put(pb, request, path, value)
    with pytest.raises(grpc.RpcError) as error:
        call(name, request)
    assert error.value.code() == code, error.value
    found = details(error.value)
    assert found["ErrorInfo"].domain == "cogumi"
    if code == INVALID:
        shown = TABLE[name][path].named or path.rsplit(".", 1)[-1]
        blamed = [v.field for v in found["BadRequest"].field_violations]
        assert any(shown in field for field in blamed), (shown, blamed)
    if code == OUT_OF_RANGE:
        assert str(CONTEXT) in error.value.details()


@pytest.mark.parametrize("name, path, value", cases("good"))
def test_a_value_at_the_edge_is_taken(call, pb, name, path, value):
    request = base_request(pb, name)
    put(pb, request, path, value)
    call(name, request)


def test_a_message_beyond_every_limit_is_refused(call, pb):
    """Larger than a whole message may be: gRPC itself refuses, the service lives on."""
    for name in TABLE:
        if name in ("GatewayService.ListModels", "DecoderService.ModelInfo", "ModifierService.List",
                    "ModifierService.Watch"):
            continue
        request = base_request(pb, name)
        path = next(iter(set(fields(request.DESCRIPTOR)) & {
            "session_id", "request_id", "text", "digest", "name", "messages.content"}), None)
        if path is None:
            continue
        put(pb, request, path, "x" * (17 * MEBIBYTE))
        with pytest.raises(grpc.RpcError) as error:
            call(name, request)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, (name, error.value)
