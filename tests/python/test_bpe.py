"""The C++ byte-level BPE, judged by tiktoken: real and random text, every code point, damaged files."""

import collections
import importlib.util
import itertools
import json
import random
import struct
import subprocess
from pathlib import Path

import numpy
import pytest
import tiktoken

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"

spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "scripts" / "prepare_data.py")
prepare_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare_data)

needs_shared = pytest.mark.skipif(
    not (SHARED / "gpt2-bpe").is_dir(),
    reason="no ../shared/data next to the checkout: GPT-2's own vocabulary not tested",
)

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


class Probe:
    """One process of the C++ tokenizer with a vocabulary."""

    def __init__(self, program, folder):
        command = [program, "encode", folder / "vocab.bpe", folder / "encoder.json"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def frame(self, item_bytes):
        (count,) = struct.unpack("<I", self.process.stdout.read(4))
        return self.process.stdout.read(count * item_bytes)

    def encode(self, data: bytes):
        """The ids, and the bytes that they decode to."""
        self.process.stdin.write(struct.pack("<I", len(data)) + data)
        self.process.stdin.flush()
        ids = numpy.frombuffer(self.frame(2), dtype="<u2").tolist()
        return ids, self.frame(1)

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=10) == 0


class Tokenizers:
    """Ours and tiktoken's with the same files."""

    def __init__(self, program, folder):
        self.probe = Probe(program, folder)
        self.encoding, _ = prepare_data.load_encoding(folder)

    def compare(self, data: bytes):
        text = data.decode("utf-8", errors="replace")
        ids, decoded = self.probe.encode(data)
        want = self.encoding.encode_ordinary(text)
        assert len(ids) == len(want) and ids == want, f"ids differ: {data[:2000]!r}"
        assert decoded == text.encode()
        return len(ids)


class Reader:
    """One process of the C++ reader of vocabularies: folders in, verdicts out."""

    def __init__(self, program):
        self.process = subprocess.Popen(
            [program, "load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def verdict(self, folder):
        self.process.stdin.write(f"{folder / 'vocab.bpe'}\t{folder / 'encoder.json'}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().rstrip("\n")
        assert answer.startswith(("ok ", f"refused: {folder}")), answer
        return answer

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=10) == 0


@pytest.fixture
def reader(program):
    reader = Reader(program)
    yield reader
    reader.close()


def byte_spellings():
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def learn_merges(text: bytes, count):
    """Byte pairs by frequency, as GPT-2's were learned; words are what spaces separate."""
    spelling = byte_spellings()
    words = collections.Counter(tuple(spelling[b] for b in b" " + word) for word in text.split())
    merges = []
    for _ in range(count):
        pairs = collections.Counter()
        for word, times in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        merged_words = collections.Counter()
        for word, times in words.items():
            parts = []
            for part in word:
                if parts and (parts[-1], part) == merges[-1]:
                    parts[-1] += part
                else:
                    parts.append(part)
            merged_words[tuple(parts)] += times
        words = merged_words
    return merges


def write_vocabulary(folder, merges):
    folder.mkdir(exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "vocab.bpe").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokens = [*byte_spellings().values(), *("".join(pair) for pair in merges), "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(tokens)}
    (folder / "encoder.json").write_text(json.dumps(ids), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def program(built):
    return built("tests/bpe_probe")


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder with merges learned from this file and some other scripts: needs nothing from outside."""
    text = (
        Path(__file__).read_bytes()[:5000]
        + "привет мир приветы 你好世界 你好 été étés 12 122 1222".encode() * 20
    )
    return write_vocabulary(tmp_path_factory.mktemp("learned"), learn_merges(text, 200))


@pytest.fixture(scope="module", params=["learned", pytest.param("gpt2", marks=needs_shared)])
def tokenizers(request, program):
    folder = request.getfixturevalue("learned") if request.param == "learned" else SHARED / "gpt2-bpe"
    both = Tokenizers(program, folder)
    yield both
    both.probe.close()


def all_code_points():
    return [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


@needs_shared
@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("wikitext-2-raw/wiki.test.raw", None),
        ("wikitext-2/test.txt", None),
        ("wikitext-2/valid.txt", None),
        ("tinyshakespeare/input.txt", 338025),
    ],
)
def test_real_text(tokenizers, file, count):
    """Every id, as the file is and with its line ends made LF."""
    data = (SHARED / file).read_bytes()
    got = tokenizers.compare(data)
    if tokenizers.encoding.n_vocab == 50257 and count is not None:
        assert got == count
    lf = data.replace(b"\r\n", b"\n")
    got = tokenizers.compare(lf)
    if tokenizers.encoding.n_vocab == 50257 and file.endswith(".raw"):
        assert got == 283287


def random_text(rng, code_points):
    """Runs of one kind each, so that pieces of every kind meet pieces of every kind."""
    kinds = [
        lambda: rng.choice(code_points),
        lambda: chr(rng.randrange(0x20, 0x7F)),
        lambda: rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        lambda: rng.choice(
            ["the", " the", "ing", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "<|endoftext|>"]
        ),
        lambda: rng.choice(" \n\r\t\v\f\x1c\x85\xa0\u1680\u180e\u2003\u2028\u202f\u3000\u200b\ufeff"),
        lambda: rng.choice("  \n"),
        lambda: rng.choice("0123456789²½Ⅷ٣\U0001d7d8\U0001e4f0\U00011bf0"),
        lambda: rng.choice("éüßñçøаяλωאبกขあア漢字한글\U00031350\U00013460\U0001e030"),
        lambda: rng.choice("\u0301\u200d\U0001f600\U0001f468\ufe0f\U000e0041—…“”"),
        lambda: chr(rng.randrange(0, 0x800)),
    ]
    runs = []
    for _ in range(rng.randint(0, 12)):
        kind = rng.choice(kinds)
        runs += [kind() for _ in range(rng.choice([1, 1, 2, 3, 8, 30]))]
    return "".join(runs)


def test_random_unicode(tokenizers):
    rng, code_points = random.Random(SEED), all_code_points()
    tokens = sum(tokenizers.compare(random_text(rng, code_points).encode()) for _ in range(10_000))
    assert tokens > 200_000


def test_every_code_point(tokenizers):
    """In order, then each between letters, numbers, marks and spaces."""
    code_points = all_code_points()
    tokenizers.compare("".join(code_points).encode())
    tokenizers.compare("".join(f"a{c}1 {c}{c}!" for c in code_points).encode())


def test_classes_of_every_code_point(program):
    """Letter, number, white space or other: as tiktoken sees it, for all of Unicode."""
    got = subprocess.run([program, "classes"], stdout=subprocess.PIPE, check=True, timeout=120).stdout
    got = numpy.frombuffer(got, dtype="S1")
    text = "".join(all_code_points())
    want = numpy.full(0x110000, b"O", dtype="S1")
    want[0xD800:0xE000] = b"-"
    for name, pattern in [(b"L", r"\p{L}"), (b"N", r"\p{N}"), (b"S", r"\s")]:
        # With single bytes as tokens, what remains of the text is what the pattern finds.
        encoding = tiktoken.Encoding(
            "class",
            pat_str=pattern,
            mergeable_ranks={bytes([b]): b for b in range(256)},
            special_tokens={},
        )
        found = bytes(encoding.encode_ordinary(text)).decode()
        want[[ord(c) for c in found]] = name
    differing = [f"U+{code:04X} {want[code]!r} {got[code]!r}" for code in numpy.flatnonzero(got != want)]
    assert not differing, (
        f"{len(differing)} code points with tiktoken's class and ours: {differing[:20]} (another "
        f"Unicode version? csrc/text/pieces.cpp names what pcre2 lacks)"
    )


def test_invalid_utf8(tokenizers):
    rng = random.Random(SEED)
    pieces = [b"the", b" \n", b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf"]
    leads = [0x7F, 0x80, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF]
    edges = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0]
    for _ in range(5_000):
        kind = rng.randrange(3)
        if kind == 0:
            data = rng.randbytes(rng.randint(0, 40))
        elif kind == 1:
            data = b"".join(rng.choice(pieces) for _ in range(rng.randint(0, 10)))
        else:
            data = bytes([rng.choice(leads), *(rng.choice(edges) for _ in range(rng.randint(0, 4)))]) * 2
        tokenizers.compare(data)


@needs_shared
def test_special_token_is_text(program):
    probe = Probe(program, SHARED / "gpt2-bpe")
    ids, _ = probe.encode(b"<|endoftext|>")
    probe.close()
    assert ids == [27, 91, 437, 1659, 5239, 91, 29]  # as encode_ordinary


def test_long_pieces(tokenizers):
    """Long enough for tiktoken's own way with them; a letter, a random word, spaces."""
    rng = random.Random(SEED)
    for text in [
        "a" * 100_000,
        "".join(rng.choice("abcdehint") for _ in range(100_000)),
        " " * 100_000 + "x",
    ]:
        tokenizers.compare(text.encode())


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


def test_damaged_vocabularies(reader, program, learned, tmp_path):
    """What ours accepts, tiktoken accepts with the same ids; what ours alone refuses falls under STRICTER."""
    rng = random.Random(SEED)
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
