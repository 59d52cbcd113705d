"""Prints a result file as Markdown: a table a model, and tbshard ÷ peer, round by round."""

import json
import statistics
import sys
from pathlib import Path

QUIET = 0.08  # a sample is left out if others used more of the machine, unless fewer than two would remain


def kept(row):
    """Returns {round: {test: rate}} of the samples that count."""
    quiet = [s for s in row["samples"] if s["foreign"] <= QUIET]
    samples = quiet if len(quiet) >= min(2, len(row["samples"])) else row["samples"]
    return {s["round"]: {test: statistics.median(rates) for test, rates in s["tests"].items()} for s in samples}


def median(row, test):
    rates = [tests[test] for tests in kept(row).values() if test in tests]
    return statistics.median(rates) if rates else None


def spread(row, test):
    rates = [tests[test] for tests in kept(row).values() if test in tests]
    return statistics.stdev(rates) if len(rates) > 1 else 0.0


def who(row):
    return " ".join(filter(None, [row["engine"], row["arithmetic"]]))


def digits(x):
    return f"{x:.2f}" if x < 10 else f"{x:.1f}" if x < 100 else f"{x:.0f}"


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def columns(rows):
    """Returns (prompt test, answer test, batched answer tests) of the model's rows: those most rows have."""
    names = [t for row in rows for s in row["samples"][:1] for t in s["tests"]]
    plain = lambda kind: max((n for n in names if n.startswith(kind) and "@" not in n), key=names.count, default=f"{kind}?")
    return plain("pp"), plain("tg"), sorted({n for n in names if "@" in n}, key=lambda n: int(n.split("@")[1]))


def cell(row, test):
    """Returns "median ± sd"; a test of another length than the column's says its own name."""
    if (value := median(row, test)) is not None:
        return f"{digits(value)} ± {digits(spread(row, test))}"
    other = [t for s in row["samples"][:1] for t in s["tests"] if t[:2] == test[:2] and "@" not in t and "@" not in test]
    return f"{digits(median(row, other[0]))} ({other[0]})" if other else "–"


def rate(row, kind, test):
    """Returns the median of `test`, or of the row's own test of that kind."""
    own = [t for s in row["samples"][:1] for t in s["tests"] if t.startswith(kind) and "@" not in t]
    return median(row, test) if "@" in test else median(row, own[0]) if own else None


def speeds(rows, bandwidth):
    pp, tg, batched = columns(rows)
    head = ["engine", "weights", "MB a token", pp, tg, "% of bandwidth", *batched]
    body = []
    for row in rows:
        start = [who(row), row["format"], f"{row['bytes_per_token'] / 1e6:.0f}"]
        if not row["samples"]:
            body.append([*start, *["–"] * (3 + len(batched))])
            continue
        answer = rate(row, "tg", tg)
        share = f"{row['bytes_per_token'] * answer / bandwidth / 1e9:.0%}" if answer else "–"
        body.append([*start, cell(row, pp), cell(row, tg), share, *(cell(row, t) for t in batched)])
    return markdown(head, body)


def best(rows, kind, test):
    """Returns the row with the highest rate."""
    timed = [(value, i) for i, row in enumerate(rows) if (value := rate(row, kind, test)) is not None]
    return rows[max(timed)[1]] if timed else None


def ratio(ours, theirs, kind, test):
    """Returns the median of ours ÷ theirs over the rounds that both ran; the ratio of medians if their tests differ in length."""
    a, b = kept(ours), kept(theirs)
    pairs = [a[n][test] / b[n][test] for n in a if n in b and test in a[n] and test in b[n]]
    if len(pairs) > 1:
        return statistics.median(pairs)
    mine, other = rate(ours, kind, test), rate(theirs, kind, test)
    return mine / other if mine and other else None


def ratios(rows):
    """Returns the table of tbshard ÷ peer: at every width and test the fastest weights of the one beside the fastest of the other."""
    pp, tg, batched = columns(rows)
    tests = [("pp", pp), ("tg", tg), *(("tg", t) for t in batched)]
    body = []
    for bits in sorted({row["bits"] for row in rows}, reverse=True):
        group = [r for r in rows if r["bits"] == bits]
        for arithmetic in ("exact", "fast"):
            for engine in ("llama.cpp", "mlx-lm", "transformers"):
                cells = []
                for kind, test in tests:
                    ours = best([r for r in group if r["engine"] == "tbshard" and r["arithmetic"] == arithmetic], kind, test)
                    theirs = best([r for r in group if r["engine"] == engine], kind, test)
                    value = ratio(ours, theirs, kind, test) if ours and theirs else None
                    cells.append(f"{value:.2f}× {theirs['format']}" if value else "–")
                if any(cell != "–" for cell in cells):
                    body.append([str(bits), arithmetic, engine, *cells])
    return markdown(["bits", "tbshard", "÷ peer's best", pp, tg, *batched], body) if body else ""


def report(result):
    """Returns the whole report."""
    bandwidth, least, most = (f(result["bandwidth_gb_s"]) for f in (statistics.median, min, max))
    m, v = result["machine"], result["versions"]
    versions = ", ".join(f"{k} {v[k]}" for k in ("llama-cpp-python", "mlx", "mlx-lm", "torch", "transformers"))
    out = [f"{result['threads']} threads on {m['cores']} cores of {m['cpu']} (family {m['family']}, model {m['model']}), "
           f"{m['memory_gib']} GiB, {bandwidth:.1f} GB/s read (between {least:.1f} and {most:.1f}); tbshard {v['tbshard']}, {versions}; "
           f"medians of {result['rounds']} alternating rounds ± standard deviation, tokens a second."]
    for name, title in result["titles"].items():
        rows = [row for row in result["rows"] if row["model"] == name]
        out += [f"**{title}**", speeds(rows, bandwidth)]
        if found := ratios(rows):
            out.append(found)
        out += [f"- {row['engine']} {row['format']} {row['arithmetic']}: {row['error']}" for row in rows if row["error"]]
    timed = [row for row in result["first_token"] if row["seconds"]]
    if timed:
        body = [[who(row), row["format"], f"{statistics.median(row['seconds']) * 1e3:.0f}", f"{min(row['seconds']) * 1e3:.0f}"] for row in timed]
        out += ["**First token after the start of the process**, SmolLM2, five tokens of prompt, page cache warm, ms",
                markdown(["engine", "weights", "median", "least"], body)]
    return "\n\n".join(out)


if __name__ == "__main__":
    print(report(json.loads(Path(sys.argv[1]).read_text())))
