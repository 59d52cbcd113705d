"""The engine of the demo model's training text: templates that can be sampled, parsed, and priced.

A template is text with choices in it:
  [a|b|c]       one of these, each as likely; may be empty and may be nested
  {var=list}    a word of a list, remembered as var; {var} says it again, {Var} with a capital
  {a var=list}  the same with its article; {var.he} the pronouns of a name: he, him, his, He, His
  <rule>        another template
A list gives no name of the wrong gender, and choices do not depend on each other otherwise: where two words must differ
(the names of two friends), they come from two lists. So a text's probability is the product of 1/n over its choices:
that is the entropy that `sample` and `parse` count, in nats.
"""

import math
import random
import re

PRONOUNS = {"he": {"he": "he", "him": "him", "his": "his"}, "she": {"he": "she", "him": "her", "his": "her"}}
TOKEN = re.compile(r"\[|\]|\||\{[^}]*\}|<[a-z_]+>|[^\[\]|{<]+")
MAX_RUNS = 400_000  # of one parse


class Mismatch(Exception):
    """The text being parsed goes on differently."""


def compile_template(text):
    """Returns the template as nested lists: ("text", s), ("slot", …), ("rule", name), ("choice", [sequence…])."""
    tokens, at = TOKEN.findall(text), 0

    def sequence(closers):
        nonlocal at
        out = []
        while at < len(tokens) and tokens[at] not in closers:
            token = tokens[at]
            at += 1
            if token == "[":
                options = [sequence("|]")]
                while tokens[at] == "|":
                    at += 1
                    options.append(sequence("|]"))
                at += 1
                out.append(("choice", options))
            elif token[0] == "{":
                article, var, attr, source = re.fullmatch(r"\{(a )?(\w+)(?:\.(\w+))?(?:=(\w+))?\}", token).groups()
                out.append(("slot", bool(article), var, attr, source))
            elif token[0] == "<":
                out.append(("rule", token[1:-1]))
            else:
                out.append(("text", token))
        return out

    out = sequence("")
    assert at == len(tokens), f"unbalanced template: {text}"
    return out


class Grammar:
    """Lists of words and named templates. A word may carry a gender: `king:he`."""

    def __init__(self, lists, rules):
        self.lists = {name: [word.partition(":")[::2] for word in words] for name, words in lists.items()}
        self.rules = {name: compile_template(text) for name, text in rules.items()}

    def genders(self, name):
        return dict(self.lists[name])

    def run(self, template, chooser, bound):
        """Says the template through `chooser`; `bound` maps variables to (word, gender) and grows."""
        for part in template:
            kind = part[0]
            if kind == "text":
                chooser.say(part[1])
            elif kind == "rule":
                self.run(self.rules[part[1]], chooser, bound)
            elif kind == "choice":
                self.run(part[1][chooser.pick(len(part[1]))], chooser, bound)
            else:
                self.slot(part, chooser, bound)

    def slot(self, part, chooser, bound):
        _, article, var, attr, source = part
        capital, var = var[0].isupper(), var.lower()
        if var not in bound:
            who = bound.get({"name": "hero", "friend": "pal"}.get(var))
            options = [(w, g) for w, g in self.lists[source] if not who or not who[1] or g == who[1]]
            bound[var] = options[chooser.pick(len(options))]
        word, gender = bound[var]
        if attr:
            word = PRONOUNS[gender][attr.lower()]
            capital = attr[0].isupper()
        if article:
            word = ("an " if word[0] in "aeiou" else "a ") + word
        chooser.say(word[0].upper() + word[1:] if capital else word)

    def sample(self, rule, rng, bound=None):
        """Returns (text, -ln probability of the choices made, bindings)."""
        chooser, bound = Sampler(rng), dict(bound or {})
        self.run(self.rules[rule], chooser, bound)
        return "".join(chooser.said), chooser.nats, bound

    def parse(self, rule, text, bound=None):
        """Returns [(-ln probability, bindings)] of every derivation of exactly `text`: none if it is not of the grammar."""
        found, path, limits = [], [], []
        for _ in range(MAX_RUNS):
            chooser, now = Replay(text, path, limits), dict(bound or {})
            try:
                self.run(self.rules[rule], chooser, now)
                if chooser.at == len(text):
                    found.append((sum(math.log(n) for n in limits), now))
            except Mismatch:
                pass
            while path and path[-1] + 1 >= limits[-1]:
                path.pop(), limits.pop()
            if not path:
                return found
            path[-1] += 1
        raise RuntimeError(f"the parse of {text[:40]!r} takes too long")


class Sampler:
    """Chooses at random and adds up what the choices cost."""

    def __init__(self, rng):
        self.rng, self.said, self.nats = rng, [], 0.0

    def pick(self, options):
        self.nats += math.log(options)
        return self.rng.randrange(options)

    def say(self, text):
        self.said.append(text)


class Replay:
    """Follows a path of choices, then takes the first option, as long as the text agrees."""

    def __init__(self, text, path, limits):
        self.text, self.path, self.limits, self.at, self.step = text, path, limits, 0, 0

    def pick(self, options):
        if options == 0:
            raise Mismatch
        if self.step == len(self.path):
            self.path.append(0)
            self.limits.append(options)
        self.step += 1
        return self.path[self.step - 1]

    def say(self, text):
        if not self.text.startswith(text, self.at):
            # choices after this point were never made on this path
            raise Mismatch
        self.at += len(text)


def pseudo_word(rng):
    """Returns a word that nobody knows, so that the model learns to repeat what it is told."""
    onsets, vowels, codas = "b bl br d dr f fl g gr k kl l m n p pl r s sk sl sn st t tr v w z".split(), "a e i o u oo ee".split(), "b d ck g l m n p r sh t x z nk".split() + [""] * 4
    one = lambda: rng.choice(onsets) + rng.choice(vowels) + rng.choice(codas)
    return "".join(one() for _ in range(rng.choice((1, 2, 2, 3))))
