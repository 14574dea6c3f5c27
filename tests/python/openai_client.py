"""The official OpenAI client over temperd's Unix socket, unchanged.

    openai_client.py SOCKET

Prints what it checked; exits with 1 at the first check that fails. Needs a daemon that is ready.
"""

import asyncio
import json
import sys
import time

import openai

# The client's third major version speaks through httpx2, its older ones through httpx; both have the same interface.
try:
    import httpx2 as httpx
except ImportError:
    import httpx

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PAYLOAD_LIMIT = 262144


def check(what, holds, found=None):
    if not holds:
        print(f"FAILED  {what}" + ("" if found is None else f": {found!r}"), flush=True)
        sys.exit(1)
    print(f"ok      {what}", flush=True)


def refused(what, kind, ask, *, status, code, param=None):
    """`ask` must raise `kind`, with our status, code and param."""
    try:
        ask()
    except kind as error:
        found = (error.status_code, error.code, error.param)
        check(f"{what} is a {kind.__name__}", found == (status, code, param), found)
        return error
    except openai.OpenAIError as error:
        check(f"{what} is a {kind.__name__}", False, type(error).__name__)
    check(f"{what} is a {kind.__name__}", False, "it was answered")


def models(client):
    listed = list(client.models.list())
    check("one model is listed", len(listed) == 1 and listed[0].object == "model", listed)
    name = listed[0].id
    check("it can be retrieved by its name", client.models.retrieve(name).id == name)
    check("`created` is a time", listed[0].created > 1_500_000_000, listed[0].created)
    refused("an unknown model", openai.NotFoundError, lambda: client.models.retrieve("no-such-model"),
            status=404, code="unknown_model", param="model")
    return name


def plain(client, model):
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=QUESTION, max_completion_tokens=16, temperature=0, seed=-1)
    answer = raw.parse()
    choice = answer.choices[0]
    check("a plain answer has text", bool(choice.message.content), choice.message.content)
    check("and a finish reason", choice.finish_reason in ("stop", "length"), choice.finish_reason)
    usage = answer.usage
    check("and usage that adds up", usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage)
    check("and cached tokens", usage.prompt_tokens_details.cached_tokens >= 0, usage)
    check("its id is in x-request-id", raw.headers.get("x-request-id") == answer.id, dict(raw.headers))
    again = QUESTION + [choice.message.model_dump(), {"role": "user", "content": "And of Italy?"}]
    check("an answer can be sent back as history",
          client.chat.completions.create(model=model, messages=again, max_tokens=4).choices[0].message.content)
    parts = [{"type": "text", "text": "Say"}, {"type": "text", "text": "hello."}]
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],
        max_tokens=4, n=1, tools=openai.NOT_GIVEN, response_format={"type": "text"})
    check("content in parts and the role developer are taken", bool(answer.choices[0].message.content))


def streamed(client, model):
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=24, temperature=0, stream=True,
        stream_options={"include_usage": True})
    chunks = list(stream)
    texts = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    check("a stream brings its text in pieces", len(texts) > 1, len(texts))
    check("the first chunk has the role", chunks[0].choices[0].delta.role == "assistant", chunks[0])
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    check("one finish reason", len(reasons) == 1 and reasons[0] in ("stop", "length"), reasons)
    check("usage alone in the last chunk", not chunks[-1].choices and chunks[-1].usage.completion_tokens > 0, chunks[-1])
    check("and in no other", all(chunk.usage is None for chunk in chunks[:-1]))
    check("one id", len({chunk.id for chunk in chunks}) == 1)


def logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    check("log probabilities for every token", 0 < len(tokens) <= 8, len(tokens))
    check("none over 0", all(token.logprob <= 0 for token in tokens))
    check("three alternatives each", all(len(token.top_logprobs) == 3 for token in tokens))
    check("the likeliest was taken", all(token.token == token.top_logprobs[0].token for token in tokens))
    text = b"".join(bytes(token.bytes) for token in tokens)
    content = answer.choices[0].message.content.encode()
    check("their bytes hold the text", content in text, (content, text))
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, stream=True)
    found = [token for chunk in stream for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content]
    check("a stream has them too", 0 < len(found) <= 4, len(found))


def completions(client, model):
    prompt = "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
    answer = client.completions.create(
        model=model, prompt=prompt, max_tokens=8, temperature=0, stop=["<|im_end|>"], logprobs=2)
    choice = answer.choices[0]
    check("a raw prompt is continued", bool(choice.text), choice.text)
    check("a control token named in `stop` is not in the text", "<|im_end|>" not in choice.text, choice.text)
    found = choice.logprobs
    check("legacy log probabilities", len(found.tokens) == len(found.token_logprobs) == len(found.text_offset), found)
    check("offsets begin at 0", found.text_offset[0] == 0, found.text_offset)
    check("two alternatives each", all(len(top) == 2 for top in found.top_logprobs), found.top_logprobs)
    stream = client.completions.create(model=model, prompt=[prompt], max_tokens=8, temperature=0, stream=True)
    check("a raw prompt is streamed", "".join(chunk.choices[0].text for chunk in stream))


def embeddings(client, model):
    texts = ["A pump moves water.", "She plays the piano."]
    # The client asks for base64 by itself and decodes it.
    answer = client.embeddings.create(model=model, input=texts)
    check("a vector for each text", [item.index for item in answer.data] == [0, 1], answer.data)
    length = len(answer.data[0].embedding)
    check("as long as the model's", length > 100 and len(answer.data[1].embedding) == length, length)
    check("of length 1", all(abs(sum(v * v for v in item.embedding) - 1) < 1e-5 for item in answer.data))
    check("their model and usage", answer.model == model and answer.usage.total_tokens == answer.usage.prompt_tokens > 5,
          answer.usage)
    plain = client.embeddings.create(model=model, input=texts[0], encoding_format="float", dimensions=length, user="u")
    near = sum(a * b for a, b in zip(plain.data[0].embedding, answer.data[0].embedding))
    check("numbers in JSON say the same", near > 0.999, near)


def schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def structured(client, model):
    def ask(**more):
        answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=200, temperature=0, **more)
        return answer.choices[0].message.content

    city = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}},
            "required": ["city", "sure"], "additionalProperties": False}
    found = json.loads(ask(response_format=schema(city)))
    check("an answer obeys its schema", list(found) == ["city", "sure"] and found["city"] == "Paris", found)
    found = json.loads(ask(response_format=schema({"type": "array", "items": {"type": "integer"}, "maxItems": 3})))
    check("also where it is no object", isinstance(found, list) and len(found) <= 3, found)
    check("json_object brings an object", ask(response_format={"type": "json_object"}).startswith("{"))
    found = ask(extra_body={"grammar": 'root ::= "yes" | "no"'})
    check("a grammar is obeyed", found in ("yes", "no"), found)


def errors(client, model):
    def ask(**more):
        return lambda: client.chat.completions.create(**({"model": model, "messages": QUESTION} | more))

    bad = {"status": 400, "code": "invalid_request"}
    refused("an unknown model to ask", openai.NotFoundError, ask(model="no-such-model"),
            status=404, code="unknown_model", param="model")
    for field, value in [("n", 2), ("temperature", 9), ("max_tokens", 0), ("max_completion_tokens", -5), ("messages", []),
                         ("tools", [{"type": "function", "function": {"name": "f"}}]), ("store", True),
                         ("logit_bias", {"x": 1}), ("response_format", schema({"not": {"type": "null"}}))]:
        refused(f"`{field}` = {json.dumps(value)}", openai.BadRequestError, ask(**{field: value}), param=field, **bad)
    refused("an unknown field", openai.BadRequestError, ask(extra_body={"never_heard_of": 1}),
            param="never_heard_of", **bad)
    for field, value in [("input", []), ("input", [1, 2]), ("input", [[1, 2]]), ("dimensions", 7),
                         ("encoding_format", "int8"), ("extra_body", {"never_heard_of": 1})]:
        fields = {"model": model, "input": "x"} | {field: value}
        refused(f"embeddings with `{field}` = {json.dumps(value)}", openai.BadRequestError,
                lambda: client.embeddings.create(**fields),
                param="never_heard_of" if field == "extra_body" else field, **bad)
    refused("embeddings of an empty text", openai.BadRequestError,
            lambda: client.embeddings.create(model=model, input=["x", ""]), param="input[1]", **bad)
    refused("embeddings of an unknown model", openai.NotFoundError,
            lambda: client.embeddings.create(model="no-such-model", input="x"),
            status=404, code="unknown_model", param="model")
    long = [{"role": "user", "content": "word " * 40_000}]
    error = refused("a prompt over the context", openai.BadRequestError, ask(messages=long),
                    status=400, code="context_length_exceeded")
    check("it says both numbers", sum(word.strip(".,;").isdigit() for word in error.message.split()) >= 2, error.message)
    huge = [{"role": "user", "content": "x" * (PAYLOAD_LIMIT + 1)}]
    refused("a body over the limit", openai.APIStatusError, ask(messages=huge), status=413, code="payload_too_large")


def plain_http(http):
    check("/healthz", http.get("/healthz").text == "ok")
    ready = http.get("/readyz")
    check("/readyz", ready.status_code == 200 and ready.json() == {"ready": True, "reasons": []}, ready.text)
    check("/metrics", "temperd_" in http.get("/metrics").text)
    check("/v1/status", http.get("/v1/status").json()["model"]["state"] == "ready")
    for what, answer, status in [
        ("malformed JSON", http.post("/v1/chat/completions", content=b"{"), 400),
        ("malformed UTF-8", http.post("/v1/chat/completions", content=b'{"model": "\xff"}'), 400),
        ("an unknown path", http.get("/v2"), 404),
        ("a wrong method", http.get("/v1/chat/completions"), 405),
    ]:
        error = answer.json()["error"]
        check(f"{what} is a {status} in OpenAI's form",
              answer.status_code == status and set(error) == {"message", "type", "param", "code"}, answer.text)


def disconnect(client, http, model):
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=4000, stream=True, extra_body={"repeat_penalty": 1.3})
    next(iter(stream))
    stream.close()
    until = time.monotonic() + 20
    while (running := http.get("/v1/status").json()["running"]) and time.monotonic() < until:
        time.sleep(0.05)
    check("closing the connection frees the slot", running == 0, running)


async def together(path, model):
    transport = httpx.AsyncHTTPTransport(uds=path)
    async with openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none",
                                  http_client=openai.DefaultAsyncHttpxClient(transport=transport)) as client:
        asked = [client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8) for _ in range(4)]
        answers = await asyncio.gather(*asked)
    check("four at once, by the asynchronous client", len({answer.id for answer in answers}) == 4)


def main(path):
    transport = httpx.HTTPTransport(uds=path)
    client = openai.OpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0,
                           http_client=openai.DefaultHttpxClient(transport=transport))
    http = httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://localhost", timeout=30)
    model = models(client)
    plain(client, model)
    streamed(client, model)
    logprobs(client, model)
    completions(client, model)
    embeddings(client, model)
    structured(client, model)
    errors(client, model)
    plain_http(http)
    disconnect(client, http, model)
    asyncio.run(together(path, model))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
