"""A gRPC client made from proto/ over temperd's Unix socket.

    grpc_client.py SOCKET FOLDER

FOLDER takes the generated stubs. Prints what it checked; exits with 1 at the first check that fails. Needs a daemon
that is ready.
"""

import importlib
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from stubs import check, generate

MODULES = ["inference_pb2", "inference_pb2_grpc", "control_pb2", "control_pb2_grpc"]
PAYLOAD_LIMIT = 262144
Code = grpc.StatusCode


def refused(what, ask, *, status, code, param=None):
    """`ask` must end in `status`, with our code and param in the metadata."""
    try:
        answer = ask()
        if hasattr(answer, "__iter__"):
            list(answer)
    except grpc.RpcError as error:
        said = dict(error.trailing_metadata())
        found = (error.code(), said.get("temperd-code"), said.get("temperd-param"))
        check(f"{what} is {status.name}", found == (status, code, param), found)
        return said
    check(f"{what} is {status.name}", False, "it was answered")


class Client:
    def __init__(self, channel, folder):
        self.channel = channel
        generate(folder)
        modules = [importlib.import_module(f"temperd.v1.{name}") for name in MODULES]
        self.pb, inference, self.control_pb, control = modules
        self.inference = inference.InferenceStub(channel)
        self.control = control.ControlStub(channel)

    def question(self, **more):
        message = self.pb.Message(role="user", content="What is the capital of France?")
        return self.pb.ChatRequest(**({"messages": [message], "max_tokens": 16, "temperature": 0} | more))

    def status(self):
        status = self.control.Status(self.control_pb.StatusRequest())
        check("Status says that the model is ready", status.ready and status.model.state == "ready", status)

    def answers(self):
        events = list(self.inference.Chat(self.question(id="plain")))
        check("without `stream` there is the final alone", [e.WhichOneof("event") for e in events] == ["final"], events)
        last = events[0].final
        check("it is completed", (last.id, last.outcome) == ("plain", "completed"), last.outcome)
        check("with text", bool(last.message.content))
        check("and usage", last.usage.prompt_tokens > 0 and last.usage.completion_tokens > 0, last.usage)

        *chunks, last = self.inference.Chat(self.question(stream=True, logprobs=True, top_logprobs=2))
        chunks = [event.chunk for event in chunks]
        last = last.final
        check("chunks are numbered", [chunk.seq for chunk in chunks] == list(range(len(chunks))), len(chunks))
        check("their text is the final's", "".join(chunk.delta for chunk in chunks) == last.message.content)
        check("an id was made up", bool(last.id) and all(chunk.id == last.id for chunk in chunks), last.id)
        check("log probabilities", last.logprobs and all(len(t.top_logprobs) == 2 for t in last.logprobs))

        prompt = "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
        raw = self.pb.CompleteRequest(prompt=prompt, max_tokens=8, temperature=0, stop=["<|im_end|>"])
        *_, last = self.inference.Complete(raw)
        check("Complete continues a raw prompt", last.final.outcome == "completed", last.final.outcome)

    def embeds(self):
        texts = ["A pump moves water.", "The pump pushes water through a pipe.", "She plays the piano."]
        reply = self.inference.Embed(self.pb.EmbedRequest(id="e", input=texts))
        check("Embed gives a vector per text", [len(e.values) for e in reply.embeddings] == [576] * 3,
              [len(e.values) for e in reply.embeddings])
        check("of length 1", all(abs(sum(v * v for v in e.values) - 1) < 1e-5 for e in reply.embeddings))
        check("its outcome, id and usage", (reply.outcome, reply.id, reply.usage.prompt_tokens > 9,
                                            reply.usage.completion_tokens) == ("completed", "e", True, 0), reply.usage)
        refused("Embed past its deadline",
                lambda: self.inference.Embed(self.pb.EmbedRequest(input=["word " * 2000] * 16, deadline_ms=1)),
                status=Code.DEADLINE_EXCEEDED, code="expired")

    def ends(self):
        stream = self.inference.Chat(self.question(id="long", stream=True, max_tokens=4000, repeat_penalty=1.3))
        next(stream)
        reply = self.control.Cancel(self.control_pb.CancelRequest(id="long"))
        check("Cancel ends a request", reply.result == "cancelled", reply.result)
        *_, last = stream
        check("whose final says so", last.final.outcome == "cancelled", last.final.outcome)
        reply = self.control.Cancel(self.control_pb.CancelRequest(id="long"))
        check("and does not know it afterwards", reply.result == "unknown", reply.result)
        *_, last = self.inference.Chat(self.question(max_tokens=4000, deadline_ms=1))
        check("a deadline ends a request as expired", last.final.outcome == "expired", last.final.outcome)

    def refusals(self):
        bad = {"status": Code.INVALID_ARGUMENT, "code": "invalid_request"}
        for field, value in [("messages", []), ("max_tokens", 0), ("temperature", float("nan")), ("session", "s"),
                             ("grammar", "g"), ("priority", 2), ("max_reply_bytes", 300)]:
            refused(f"`{field}` = {value!r}", lambda: self.inference.Chat(self.question(**{field: value})),
                    param=field, **bad)
        role = self.pb.Message(role="bystander", content="x")
        refused("an unknown role", lambda: self.inference.Chat(self.question(messages=[role])),
                param="messages[0].role", **bad)
        for what, fields, param in [("no text", {}, "input"), ("an empty text", {"input": ["x", ""]}, "input[1]"),
                                    ("too many texts", {"input": ["x"] * 257}, "input"),
                                    ("a priority", {"input": ["x"], "priority": 2}, "priority")]:
            refused(f"Embed with {what}", lambda: self.inference.Embed(self.pb.EmbedRequest(**fields)),
                    param=param, **bad)
        for field, value in [("context", 1), ("parallel", 0), ("pace", 2.0), ("admit", "stop")]:
            pin = self.control_pb.SetOperatingPointRequest(operating_point={field: value})
            refused(f"SetOperatingPoint with {field} = {value!r}", lambda: self.control.SetOperatingPoint(pin),
                    param=f"operating_point.{field}", **bad)
        refused("DeleteSession", lambda: self.control.DeleteSession(self.control_pb.DeleteSessionRequest(session="s")),
                param="session", **bad)
        refused("Cancel without an id", lambda: self.control.Cancel(self.control_pb.CancelRequest()), param="id", **bad)

        long = self.pb.Message(role="user", content="word " * 40_000)
        said = refused("a prompt over the context", lambda: self.inference.Chat(self.question(messages=[long])),
                       status=Code.INVALID_ARGUMENT, code="context_length_exceeded")
        check("it says both numbers", int(said["temperd-actual"]) > int(said["temperd-limit"]), said)
        huge = self.pb.Message(role="user", content="x" * (PAYLOAD_LIMIT + 1))
        refused("a message over the limit", lambda: self.inference.Chat(self.question(messages=[huge])),
                status=Code.RESOURCE_EXHAUSTED, code="payload_too_large")
        raw = self.channel.unary_stream("/temperd.v1.Inference/Chat")
        refused("malformed protobuf", lambda: raw(b"\xff\xff\xff"), **bad)
        refused("malformed UTF-8", lambda: raw(b"\x0a\x02\xff\xfe"), **bad)
        refused("an unknown field", lambda: raw(self.question().SerializeToString() + b"\xb8\x3e\x01"), **bad)
        unknown = self.channel.unary_unary("/temperd.v1.Inference/Dance")
        refused("an unknown method", lambda: unknown(b""), status=Code.UNIMPLEMENTED, code=None)


def health(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for name in ["", "temperd.v1.Inference", "temperd.v1.Control"]:
        found = stub.Check(health_pb2.HealthCheckRequest(service=name)).status
        check(f"health of {name or 'the server'!r}", found == serving, found)
    watched = stub.Watch(health_pb2.HealthCheckRequest())
    check("health can be watched", next(watched).status == serving)
    watched.cancel()
    refused("health of an unknown service", lambda: stub.Check(health_pb2.HealthCheckRequest(service="x")),
            status=Code.NOT_FOUND, code=None)


def reflection(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = [reflection_pb2.ServerReflectionRequest(list_services=""),
             reflection_pb2.ServerReflectionRequest(file_containing_symbol="temperd.v1.Telemetry")]
    listed, file = stub.ServerReflectionInfo(iter(asked))
    names = {service.name for service in listed.list_services_response.service}
    wanted = {"temperd.v1.Inference", "temperd.v1.Control", "grpc.health.v1.Health"}
    check("reflection lists the services", wanted <= names, names)
    check("and gives their files", len(file.file_descriptor_response.file_descriptor_proto) > 0)


def main(path, folder):
    # By itself grpcio makes the socket's path the authority, which HTTP/2 servers refuse as malformed.
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")]) as channel:
        client = Client(channel, folder)
        client.status()
        client.answers()
        client.embeds()
        client.ends()
        client.refusals()
        health(channel)
        reflection(channel)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
