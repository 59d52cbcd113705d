#!/usr/bin/env python3
"""Holds JSON objects to the types of the official OpenAI client, which `pip install openai` has.

Reads lines [kind, object] from standard input; exits 1 with what differs, 77 if there is no client.
"""

import json
import sys

try:
    from openai.types import Completion
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
except ImportError:
    sys.exit(77)

TYPES = {"chat.completion": ChatCompletion, "chat.completion.chunk": ChatCompletionChunk, "text_completion": Completion}

# what others send too and the client has no name for
EXTRA = {"reasoning_content"}


def extras(value):
    """The keys that the client's types do not have."""
    if isinstance(value, list):
        return set().union(*map(extras, value))
    if not hasattr(value, "model_extra"):
        return set()
    return set(value.model_extra or {}).union(*(extras(getattr(value, key)) for key in type(value).model_fields))


count = 0
for line in sys.stdin:
    kind, given = json.loads(line)
    expected = json.loads(line)[1]
    for choice in given["choices"]:
        # the type is that of a whole response, but every stream has chunks before the last
        if kind == "text_completion" and choice["finish_reason"] is None:
            choice["finish_reason"] = "stop"
    model = TYPES[kind].model_validate(given, strict=True)
    for choice, before in zip(given["choices"], expected["choices"]):
        choice["finish_reason"] = before["finish_reason"]
    dumped = model.model_dump(exclude_unset=True)
    for choice, before in zip(dumped["choices"], expected["choices"]):
        choice["finish_reason"] = before["finish_reason"]
    if dumped != expected or not extras(model) <= EXTRA:
        sys.exit(f"{extras(model)}\n{expected}\n{dumped}")
    count += 1
print(count)
