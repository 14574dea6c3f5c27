"""A device that speaks protobuf over MQTT 5, made from proto/ and paho-mqtt.

    mqtt_client.py PORT NODE FOLDER

Asks, streams and decodes telemetry of a node on the broker at 127.0.0.1:PORT. FOLDER takes the generated modules.
Prints what it checked; exits with 1 at the first check that fails.
"""

import importlib
import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stubs import check, generate

PROTOBUF = "application/x-protobuf"
REPLY = "temperd/v1/clients/meter/reply"
PATIENCE_S = 120


class Device:
    def __init__(self, port, node):
        self.node = node
        names = ["telemetry", "state", "info"]
        self.messages = {topic: queue.Queue() for topic in [REPLY, *(f"temperd/v1/{node}/{name}" for name in names)]}
        subscribed = queue.Queue()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="meter", protocol=mqtt.MQTTv5)
        self.client.on_message = lambda client, data, message: self.messages[message.topic].put(message)
        self.client.on_subscribe = lambda *_: subscribed.put(True)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        self.client.subscribe([(topic, mqtt.SubscribeOptions(qos=1)) for topic in self.messages])
        subscribed.get(timeout=PATIENCE_S)

    def ask(self, op, payload, correlation):
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = PROTOBUF
        properties.ResponseTopic = REPLY
        properties.CorrelationData = correlation
        self.client.publish(f"temperd/v1/{self.node}/request/{op}", payload, qos=1, properties=properties)

    def answer(self, correlation):
        """A payload, and the user properties: `seq` marks a chunk, `outcome` a final."""
        message = self.messages[REPLY].get(timeout=PATIENCE_S)
        found = (message.properties.ContentType, message.properties.CorrelationData)
        check("the answer has our content type and correlation data", found == (PROTOBUF, correlation), found)
        return message.payload, dict(message.properties.UserProperty)

    def final(self, kind, correlation):
        payload, properties = self.answer(correlation)
        last = kind.FromString(payload)
        check("a final says its outcome beside its payload", properties.get("outcome") == last.outcome, properties)
        return last

    def published(self, name, kind):
        message = self.messages[f"temperd/v1/{self.node}/{name}"].get(timeout=PATIENCE_S)
        parsed = kind.FromString(message.payload)
        check(f"{name} is protobuf", parsed.node == self.node, parsed)
        return parsed


def main(port, node, folder):
    generate(folder)
    pb, control, telemetry = (importlib.import_module(f"temperd.v1.{name}_pb2")
                              for name in ["inference", "control", "telemetry"])
    device = Device(port, node)

    def question(**more):
        messages = [pb.Message(role="system", content="You are a helpful assistant."),
                    pb.Message(role="user", content="Complete the sentence: The capital of France is")]
        return pb.ChatRequest(messages=messages, max_tokens=24, temperature=0, **more).SerializeToString()

    device.ask("chat", question(), b"\x00plain")
    plain = device.final(pb.Final, b"\x00plain")
    check("it is completed", plain.outcome == "completed", plain)
    check("with the answer", "Paris" in plain.message.content, plain.message.content)
    check("and usage", plain.usage.prompt_tokens > 0 and plain.usage.completion_tokens > 0, plain.usage)

    device.ask("chat", question(stream=True), b"stream")
    pieces = []
    while True:
        payload, properties = device.answer(b"stream")
        if "outcome" in properties:
            final = pb.Final.FromString(payload)
            break
        chunk = pb.Chunk.FromString(payload)
        pieces.append((chunk.seq, chunk.delta))
    check("a stream comes in numbered chunks", [seq for seq, _ in pieces] == list(range(len(pieces))), pieces)
    check("that make the final", "".join(text for _, text in pieces) == final.message.content, final)

    device.ask("chat", question() + b"\xb8\x3e\x01", b"unknown")
    refused = device.final(pb.Final, b"unknown")
    check("an unknown field is refused", (refused.outcome, refused.error.code) == ("refused", "invalid_request"), refused)

    info = device.published("info", telemetry.Info)
    check("info lists our content type", PROTOBUF in info.content_types, info)
    state = device.published("state", control.Status)
    check("state says that the model is ready", state.ready and state.model.state == "ready", state)
    # That of before the answers may still be on its way.
    while True:
        measured = device.published("telemetry", telemetry.Telemetry)
        if measured.model.state == "ready":
            break
    check("telemetry has the operating point", measured.operating_point.context > 0, measured)
    device.client.disconnect()
    device.client.loop_stop()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
