"""The C++ byte-level BPE, judged by tiktoken: real and random text, every code point."""

import random
import subprocess

import numpy
import pytest
import tiktoken
from bpe_probes import Probe, Tokenizers, learned_vocabulary
from conftest import SHARED

needs_shared = pytest.mark.skipif(
    not (SHARED / "gpt2-bpe").is_dir(),
    reason="no ../shared/data next to the checkout: GPT-2's own vocabulary not tested",
)

SEED = 5


@pytest.fixture(scope="module")
def program(built):
    return built("tests/bpe_probe")


@pytest.fixture(scope="module", params=["learned", pytest.param("gpt2", marks=needs_shared)])
def tokenizers(request, program, tmp_path_factory):
    if request.param == "learned":
        folder = learned_vocabulary(tmp_path_factory.mktemp("learned"))
    else:
        folder = SHARED / "gpt2-bpe"
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
