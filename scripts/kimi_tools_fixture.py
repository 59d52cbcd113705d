#!/usr/bin/env python3
"""Write what the tokenizer code of Kimi K2.5 makes of the schemas of tools.

    kimi_tools_fixture.py TOOL_DECLARATION_TS [--random N] [--out tests/fixtures/kimi_tools.json]

TOOL_DECLARATION_TS is the file tool_declaration_ts.py of the model's repository; nothing of it is kept. Each case is a list of
tools and the declarations, or null where that code refuses them.
"""

import argparse
import importlib.util
import json
import logging
import random
from pathlib import Path

STRING, NUMBER, INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}


def function(parameters=None, name="f", **more):
    return {"type": "function", "function": {"name": name, **({} if parameters is None else {"parameters": parameters}), **more}}


def fields(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required)}


TREE = {"$defs": {"Tree": {"type": "object", "description": "A tree.\n\nOf trees.", "properties": {
    "left": {"$ref": "#/$defs/Tree"}, "value": NUMBER}, "required": ["value"]}}, **fields(["root"], root={"$ref": "#/$defs/Tree", "description": "Where it starts"})}

WRITTEN = [
    [],
    [function()],
    [function({})],
    [function(None, name="now", description="What time it is.\n\nIn UTC.")],
    [function(fields(["city"], city=STRING | {"description": "A city,\nor a town"}, unit={"enum": ["°C", "°F"], "default": "°C"}), name="weather")],
    [function(fields(["z", "a"], z=STRING, b=NUMBER, a=INTEGER, y={"type": "boolean"}, n={"type": "null"}))],
    [function(fields(s=STRING | {"minLength": 1, "maxLength": 20, "pattern": "^[a-z]\\d+\"$", "format": "date"}))],
    [function(fields(n=NUMBER | {"minimum": 0.5, "maximum": 1e16, "multipleOf": 2}, i=INTEGER | {"minimum": -3, "description": "few"}))],
    [function(fields(a={"type": "array"}, b={"type": "array", "items": STRING}, c={"type": "array", "items": {}, "minItems": 1, "maxItems": 3}))],
    [function(fields(a={"type": "array", "description": "All.", "items": STRING | {"description": "One\n\nof them", "maxLength": 3}}))],
    [function(fields(a={"type": "array", "items": fields(["x"], x={"type": "array", "items": NUMBER | {"minimum": 1}})}))],
    [function(fields(["o"], o=fields(["deep"], deep=fields(w={"type": "object"}) | {"description": "Deeper"}, by=STRING)))],
    *[[function(fields(o={"type": "object", "additionalProperties": more}, p=fields(q=STRING) | {"additionalProperties": more}))]
      for more in (True, False, None, {}, STRING | {"description": "not shown"}, fields(r=NUMBER))],
    [function(fields(x=STRING) | {"additionalProperties": False})],
    [function({"additionalProperties": {"type": "array", "items": NUMBER}})],
    [function(fields(e={"enum": [1, 2.5, True, None, "a\"b", 1e-5, 1e22]}, f={"type": ["string", "null"], "enum": ["x", None]}, g={"enum": [[1, "a"], {"b": None}]}))],
    [function(fields(e={"type": "integer", "enum": [1, True]}, n={"type": "number", "enum": [1, 2.0, False]}, b={"type": ["boolean"], "enum": [True]}, z={"enum": []}))],
    *[[function(fields(e={"type": kind, "enum": values}))] for kind, values in (
        ("string", [1]), ("integer", [1.0]), ("boolean", [1]), ("number", ["1"]), (["string", "number"], ["1"]), ([], [1]), (["a", "b", "null"], [1]),
        ("object", [1]), (["null", "integer"], [3]), (["null", "null"], [3]))],
    [function(fields(u={"type": ["string", "integer", "null", "object", "array", "boolean", "number"], "description": "Anything"}))],
    [function(fields(u={"type": ["string", "date"]}))],
    [function(fields(u={"anyOf": [STRING | {"description": "not shown"}, {"type": "null"}, fields(v=NUMBER), {"enum": ["a", 1]}], "description": "One of", "default": None}))],
    [function(fields(u={"anyOf": []}, v={"anyOf": [{"type": "array", "items": STRING | {"description": "shown"}}]}))],
    [function(fields(t=True, f=False, o={}))],
    [function(fields(d=STRING | {"default": "é\n\"x\""}, e=NUMBER | {"default": 1.0}, f={"type": "boolean", "default": False}, g={"type": "array", "default": [1, {"k": 2.0}, None, True]},
                     h={"type": "object", "default": {}}, i=INTEGER | {"default": 0}, j=STRING | {"default": ""}))],
    [function(TREE)],
    [function(fields(self={"$ref": "#"}, a=STRING) | {"required": ["self"], "additionalProperties": True})],
    [function({"$defs": {"A": {"enum": ["x"]}, "B": {"type": "array", "items": {"$ref": "#/$defs/A"}}, "C": {}}, **fields(b={"$ref": "#/$defs/B"}, c={"$ref": "#"})}, description="Both.")],
    [function(fields(o=fields(p={"$ref": "#/$defs/In"}) | {"$defs": {"In": STRING}}))],
    *[[function(fields(r={"$ref": to}))] for to in ("#/$defs/None", "other.json", "#/definitions/A", 3)],
    [function({"$defs": {"A": True}, **fields(a={"$ref": "#/$defs/A"})})],
    [function({"$defs": {"A": True}, **fields(a=STRING)})],
    [function({"$defs": {"A": STRING}, **fields(a={"$ref": "#/$defs/x/A"})})],
    *[[function(fields(o=odd))] for odd in ({"description": "no type"}, {"oneOf": [STRING]}, {"const": 1}, {"type": "array", "items": [STRING]}, {"type": "date"}, "string", None, 3, [])],
    *[[function(parameters)] for parameters in (False, [STRING], {"properties": None}, {"properties": []}, {"properties": {"a": STRING}, "required": None}, {"type": "array"})],
    [function(fields(a=STRING | {"description": ["no text"]}))],
    [function(fields(a={"anyOf": [STRING | {"description": ["no text"]}]}))],
    [function(fields(a=STRING | {"description": None, "minLength": None, "maxLength": True}))],
    [function(fields(a=STRING), name="one"), function(fields(b=NUMBER), name="two", description="Two")],
    [{"type": "_plugin", "name": "x"}, function(name="after")],
    [{"type": "_plugin"}],
    [{"type": "function", "function": {}}],
    [function(fields(é=STRING, **{"a b": STRING, "Z": STRING, "_": STRING}), name="näme", description="Ünïcödé 灯")],
    [{"type": "function", "function": {"parameters": fields(a=STRING)}}],
]


def anything(rng, depth=0):
    """A schema of any kind, now and then one that no code should take."""
    kind = rng.choice(["string", "number", "integer", "boolean", "array", "object", "enum", "anyOf", "union", "ref", "odd"][: 11 if depth < 3 else 4])
    more = {"description": rng.choice(["Words", "Two\nlines", "", "a\n\nb\n"])} if rng.random() < 0.4 else {}
    more |= {key: rng.choice(values) for key, values in (
        ("maxLength", [3, 9]), ("minimum", [0, -1.5, 1e20]), ("minItems", [1]), ("default", [1, 2.5, "x", None, [1], {"a": "é"}, True])) if rng.random() < 0.2}
    if kind == "array":
        return {"type": kind, **({"items": anything(rng, depth + 1)} if rng.random() < 0.8 else {}), **more}
    if kind == "object":
        names = rng.sample(["a", "B", "c_d", "é", "z9"], rng.randrange(4))
        own = {"$defs": {name: anything(rng, depth + 1) for name in rng.sample(["P", "Q"], 2)}} if rng.random() < 0.2 else {}
        own |= {"additionalProperties": rng.choice([True, False, anything(rng, depth + 1)])} if rng.random() < 0.3 else {}
        return own | {"type": kind, "properties": {name: anything(rng, depth + 1) for name in names}, "required": rng.sample(names, len(names) // 2), **more}
    if kind == "enum":
        return {"enum": rng.sample(["a", "b\"", 1, 2.5, None, True, [0.1]], 3), **more}
    if kind == "anyOf":
        return {"anyOf": [anything(rng, depth + 1) for _ in range(rng.randrange(1, 4))], **more}
    if kind == "union":
        return {"type": rng.sample(["string", "null", "integer", "array", "object"], 2), **more}
    if kind == "ref":
        return {"$ref": rng.choice(["#", "#/$defs/P", "#/$defs/P", "#/$defs/P", "#/$defs/Q"]), **more}
    if kind == "odd":
        return rng.choice([True, False, {}, {"title": "t"}]) if rng.random() < 0.5 else STRING
    return {"type": kind, **more}


def invented(count):
    rng = random.Random(5)
    for _ in range(count):
        names = rng.sample("pqrst", rng.randrange(1, 4))
        parameters = {"type": "object", "properties": {name: anything(rng) for name in names}, "required": names[1:]}
        if rng.random() < 0.7:
            parameters["$defs"] = {"P": anything(rng, 1), "Q": anything(rng, 1)}
        yield [function(parameters, description=rng.choice(["", "Does it."]))]


def sorted_keys(value):
    """What Kimi's tokenizer does to tools before all else."""
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("code", type=Path)
    parser.add_argument("--random", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests/fixtures/kimi_tools.json")
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("tool_declaration_ts", args.code)
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    logging.disable()
    cases = []
    for tools in [*WRITTEN, *invented(args.random)]:
        try:
            # nothing, and a refusal, leave the template its JSON
            declaration = code.encode_tools_to_typescript_style(sorted_keys(tools)) or None
        except Exception:
            declaration = None
        cases.append({"tools": tools, "declaration": declaration})
    args.out.write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n")
    refused = sum(case["declaration"] is None for case in cases)
    print(f"{len(cases)} cases, {refused} of them refused, {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
