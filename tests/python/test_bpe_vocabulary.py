"""Damaged vocabularies: what the C++ reader accepts, tiktoken accepts; what it alone refuses is listed."""

import json
import random
from pathlib import Path

import pytest
from bpe_probes import Reader, Tokenizers, byte_spellings, learned_vocabulary
from kvfuse import prepare_data

# What the C++ reader refuses and tiktoken's loader does not: the files, and a part of the message.
STRICTER = {
    "cut off": (["h e", "t h"], {"he": 256}, "expected a line end as the last byte"),
    "no version line": (["h e"], {"he": 256}, 'expected it to begin with "#version:"'),
    "two spaces": (["h  e"], {"he": 256}, "expected two tokens with one space between them"),
    "merge of a token made later": (
        ["t he", "h e"],
        {"the": 256, "he": 257},
        "expected a byte or a token that",
    ),
    "the same token twice": (["a a", "a aa", "aa a"], {"aa": 256, "aaa": 258}, "expected a new token"),
    # tiktoken joins "a" and "bc" to "abc"; the file only has a merge of "ab" and "c".
    "merge that nothing leads to": (
        ["b c", "a b", "ab c"],
        {"bc": 256, "ab": 257, "abc": 258},
        "expected a merge that its token's bytes lead to",
    ),
    "entry given twice": (["h e"], {"he": 256}, "is given twice"),
    "id that is no integer": (["h e"], {"he": 256.0}, "(its place in vocab.bpe), got"),
    "<|endoftext|> missing or misplaced": (["h e"], {"he": 256}, 'token "<|endoftext|>"'),
}
SEED = 5


@pytest.fixture(scope="module")
def program(built):
    return built("tests/bpe_probe")


@pytest.fixture
def reader(program):
    reader = Reader(program)
    yield reader
    reader.close()


def damage(rng, merges: bytes, ids: bytes):
    """One change to one of the files, of the kind that a broken or hostile writer makes."""
    lines = merges.split(b"\n")
    entries = json.loads(ids)
    place = rng.randrange(1, len(lines) - 1)
    other = rng.randrange(1, len(lines) - 1)
    token = rng.choice(list(entries))
    kind = rng.randrange(12)
    if kind == 0:
        lines[place], lines[other] = lines[other], lines[place]
    elif kind == 1:
        lines.insert(place, lines[other])
    elif kind == 2:
        del lines[place]
    elif kind == 3:
        lines[place] = rng.choice(
            [b"", b"a", b"a b c", b"a  b", b" a b", b"a b ", b"a\tb", b"\xff b", b"zz q"]
        )
    elif kind == 4:
        return merges[: rng.randrange(len(merges))], ids
    elif kind == 5:
        return merges, ids[: rng.randrange(len(ids))]
    elif kind == 6:
        values = [
            entries[token] + 1,
            -1,
            2**16,
            2**32,
            2**64,
            float(entries[token]),
            None,
            "1",
            [1],
            {},
            True,
        ]
        entries[token] = rng.choice(values)
    elif kind == 7:
        del entries[token]
    elif kind == 8:
        entries[rng.choice(["zz", "", "é", "é\n"])] = len(entries)
    elif kind == 9:
        text = bytearray(rng.choice([merges, ids]))
        text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
        return (bytes(text), ids) if text.startswith(b"#") else (merges, bytes(text))
    elif kind == 10:
        return merges, ids[:-1] + f", {json.dumps(token)}: {entries[token]}}}".encode()
    else:  # the ids follow from the lines, but the lines are others, or in another order
        change = rng.choice(["shuffled", "two swapped", "neighbours swapped", "first ones only"])
        if change == "shuffled":
            lines[1:-1] = rng.sample(lines[1:-1], len(lines) - 2)
        elif change == "first ones only":
            del lines[place:-1]
        else:
            other = other if change == "two swapped" else max(place - 1, 1)
            lines[place], lines[other] = lines[other], lines[place]
        tokens = [*byte_spellings().values(), *(line.replace(b" ", b"").decode() for line in lines[1:-1])]
        return b"\n".join(lines), json.dumps(
            {t: i for i, t in enumerate([*tokens, "<|endoftext|>"])}
        ).encode()
    return b"\n".join(lines), json.dumps(entries).encode()


@pytest.mark.parametrize("rule", STRICTER)
def test_stricter_than_tiktoken(reader, tmp_path, rule):
    lines, ids, message = STRICTER[rule]
    merges = "\n".join(["#version: 0.2", *lines, ""])
    if rule == "cut off":
        merges = merges[:-1]
    elif rule == "no version line":
        merges = merges.removeprefix("#")
    ids = {spelling: i for i, spelling in enumerate(byte_spellings().values())} | ids
    if not rule.startswith("<|endoftext|>"):
        ids["<|endoftext|>"] = len(ids)
    encoder = json.dumps(ids)
    if rule == "entry given twice":
        encoder = '{"he": 256, ' + encoder[1:]
    (tmp_path / "vocab.bpe").write_text(merges, encoding="utf-8")
    (tmp_path / "encoder.json").write_text(encoder, encoding="utf-8")
    prepare_data.load_encoding(tmp_path)  # does not raise
    assert message in reader.verdict(tmp_path)


def load_encoding_or_none(folder):
    try:
        return prepare_data.load_encoding(folder)[0]
    except (prepare_data.DataError, UnicodeDecodeError):
        return None


def test_damaged_vocabularies(reader, program, tmp_path_factory, tmp_path):
    """What ours accepts, tiktoken accepts with the same ids; what ours alone refuses falls under STRICTER."""
    rng = random.Random(SEED)
    learned = learned_vocabulary(tmp_path_factory.mktemp("learned"))
    merges, ids = (learned / "vocab.bpe").read_bytes(), (learned / "encoder.json").read_bytes()
    accepted, met = 0, set()
    for _ in range(1_000):
        changed = damage(rng, merges, ids)
        for name, content in zip(["vocab.bpe", "encoder.json"], changed, strict=True):
            (tmp_path / name).write_bytes(content)
        verdict, encoding = reader.verdict(tmp_path), load_encoding_or_none(tmp_path)
        if verdict.startswith("ok "):
            assert encoding is not None, f"accepted alone: {changed!r}"
            assert int(verdict.split()[1]) == encoding.n_vocab
            accepted += 1
            both = Tokenizers(program, tmp_path)
            both.compare(Path(__file__).read_bytes())
            both.probe.close()
        elif encoding is not None:
            rules = [rule for rule, (*_, message) in STRICTER.items() if message in verdict]
            assert rules, f"refused alone ({verdict}): {changed!r}"
            met.update(rules)
    assert accepted >= 20, "too few sound files among the damaged ones to mean anything"
    assert met, "no damage that only ours refuses"
