"""The official openai client against a running server: prints "ok" or fails. Usage: serve_openai.py URL MODEL."""

import sys

import openai

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="secret", max_retries=0)
ask = [{"role": "user", "content": "Tell me a story about a fox."}]


def refused(kind, **body):
    try:
        client.chat.completions.create(model=model, **body)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised by {body}")


models = client.models.list()
assert [found.id for found in models.data] == [model], models
assert client.models.retrieve(model).owned_by == "tbshard"

whole = client.chat.completions.create(model=model, messages=ask, max_tokens=40, temperature=0)
text = whole.choices[0].message.content
assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 40, whole
assert type(whole).model_validate(whole.model_dump(), strict=True), whole

stream = client.chat.completions.create(
    model=model, messages=ask, max_tokens=40, temperature=0, stream=True, stream_options={"include_usage": True}
)
chunks = list(stream)
pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
assert "".join(pieces) == text and len(pieces) > 20, pieces
assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
assert chunks[-1].usage.completion_tokens == 40, chunks[-1]

two = client.chat.completions.create(model=model, messages=ask, max_tokens=12, n=2, temperature=0.9, seed=7)
assert [choice.index for choice in two.choices] == [0, 1], two
again = client.chat.completions.create(model=model, messages=ask, max_tokens=12, n=2, temperature=0.9, seed=7)
assert [a.message.content for a in two.choices] == [b.message.content for b in again.choices]

likely = client.chat.completions.create(
    model=model, messages=ask, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
)
tokens = likely.choices[0].logprobs.content
assert "".join(token.token for token in tokens) == likely.choices[0].message.content, likely
assert all(token.logprob == token.top_logprobs[0].logprob and len(token.top_logprobs) == 2 for token in tokens), tokens

plain = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0)
assert plain.choices[0].finish_reason == "length" and plain.choices[0].text, plain

tool = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "maxLength": 12}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}
told = ask + [
    {"role": "assistant", "content": None, "tool_calls": [call]},
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
]
offered = client.chat.completions.create(model=model, messages=told, max_tokens=8, temperature=0, tools=[tool])
assert offered.choices[0].finish_reason in ("length", "stop", "tool_calls"), offered
assert offered.usage.prompt_tokens > whole.usage.prompt_tokens + 20, offered
assert refused(openai.BadRequestError, messages=ask, tools=[{"type": "telepathy"}]).param.startswith("tools"), "named"

assert refused(openai.BadRequestError, messages=[]).status_code == 400
assert refused(openai.BadRequestError, messages=ask, temperature=9).param == "temperature"
long = [{"role": "user", "content": "word " * 5000}]
assert refused(openai.BadRequestError, messages=long).code == "context_length_exceeded"
wrong = openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0)
try:
    wrong.models.list()
    raise AssertionError("a wrong key was let in")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key", error

with client.chat.completions.create(
    model=model, messages=ask, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
) as left:
    next(iter(left))
print("ok")
