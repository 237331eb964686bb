"""Token files from text: the ids, the description, and the sentence for each kind of bad input."""

import hashlib
import io
import json
import urllib.error
import zipfile

import numpy
import pytest
import tiktoken
from conftest import SHARED
from kvfuse import prepare_data

needs_shared = pytest.mark.skipif(
    not (SHARED / "wikitext-2-raw").is_dir(),
    reason="no ../shared/data next to the checkout: real text not tested",
)


@pytest.fixture
def tiny_vocab(tmp_path):
    """The 256 bytes and two merges: "he" is 256, "the" is 257."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    folder = tmp_path / "vocab"
    folder.mkdir()
    (folder / "vocab.bpe").write_text("#version: 0.2\nh e\nt he\n", encoding="utf-8")
    encoder = {token: i for i, token in enumerate([*characters, "he", "the", "<|endoftext|>"])}
    (folder / "encoder.json").write_text(json.dumps(encoder), encoding="utf-8")
    return folder


def run(tmp_path, text: bytes, vocab, *more: str) -> int:
    (tmp_path / "text.txt").write_bytes(text)
    arguments = ["--text", tmp_path / "text.txt", "--vocab", vocab, "--output", tmp_path / "out", *more]
    return prepare_data.main([str(argument) for argument in arguments])


def tokens_of(tmp_path, name="text") -> list[int]:
    return numpy.fromfile(tmp_path / "out" / f"{name}.bin", dtype="<u2").tolist()


def test_tokens_and_description(tmp_path, tiny_vocab):
    assert run(tmp_path, b"he the\r\n", tiny_vocab) == 0
    space, newline = 188 + 32, 188 + 10  # unprintable bytes follow the 188 printable ones, in order
    assert tokens_of(tmp_path) == [256, space, 257, newline]
    description = json.loads((tmp_path / "out" / "text.json").read_text())
    assert description["text_sha256"] == hashlib.sha256(b"he the\r\n").hexdigest()
    assert (description["text_bytes"], description["text_words"], description["tokens"]) == (8, 2, 4)
    assert description["recipe"].startswith("whole: ")
    token_file = (tmp_path / "out" / "text.bin").read_bytes()
    assert description["token_file_sha256"] == hashlib.sha256(token_file).hexdigest()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["text.bin", "text.json"]


def test_rows_are_joined_by_blank_lines(tmp_path, tiny_vocab):
    assert run(tmp_path, b"he\n \nthe\n", tiny_vocab, "--recipe", "rows", "--name", "rows") == 0
    assert tokens_of(tmp_path, "rows") == [256, *[198] * 5, 257, 198]


def test_a_changed_vocabulary_is_read_again(tmp_path, tiny_vocab):
    assert run(tmp_path, b"the", tiny_vocab) == 0 and tokens_of(tmp_path) == [257]
    (tiny_vocab / "vocab.bpe").write_text("#version: 0.2\nh e\n", encoding="utf-8")
    encoder = json.loads((tiny_vocab / "encoder.json").read_text(encoding="utf-8"))
    del encoder["the"]
    (tiny_vocab / "encoder.json").write_text(json.dumps(encoder), encoding="utf-8")
    assert run(tmp_path, b"the", tiny_vocab) == 0 and tokens_of(tmp_path)[-1] == 256


@pytest.mark.parametrize(
    ("text", "more", "sentence"),
    [
        (b"", [], "text.txt: expected text, got an empty file"),
        (b"ab\xff", [], "text.txt: expected UTF-8, got byte 0xff at 2"),
        (b"ab", ["--sha256", "0" * 64], "text.txt: expected SHA-256 0000"),
        (b"ab", ["--text", "nowhere.txt"], "nowhere.txt: can't be read: No such file"),
        (b"ab", ["--text", "."], ".: expected a regular file"),
        (b"ab", ["--vocab", "nowhere"], "vocab.bpe: can't be read: No such file"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, tiny_vocab, capsys, text, more, sentence):
    assert run(tmp_path, text, tiny_vocab, *more) == 3
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("prepare_data: error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoder", ["", "[]", "{}", '{"a": 5}', "\x00"])
def test_damaged_vocabulary(tmp_path, tiny_vocab, capsys, encoder):
    (tiny_vocab / "encoder.json").write_text(encoder)
    assert run(tmp_path, b"he", tiny_vocab) == 3
    assert "don't fit each other or are damaged" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--sha256", "00"], ["--name", "../x"], ["--recipe", "x"], ["--tex"]])
def test_usage(arguments):
    with pytest.raises(SystemExit) as stop:
        prepare_data.main(arguments)
    assert stop.value.code == 2


def test_unwritable_output(tmp_path, tiny_vocab, capsys):
    (tmp_path / "out").write_text("a file where the folder should be")
    assert run(tmp_path, b"he", tiny_vocab) == 4
    assert "can't be written" in capsys.readouterr().err


def answer_with(monkeypatch, answer):
    def urlopen(url, timeout):
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(prepare_data.urllib.request, "urlopen", urlopen)


def archive_of(text: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as folder:
        folder.writestr(prepare_data.WIKITEXT_MEMBER, text)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            urllib.error.URLError("refused"),
            "can't be downloaded: refused (give a text that is already here: --text",
        ),
        (TimeoutError("timed out"), "can't be downloaded: timed out"),
        (b"<html>", "expected a zip archive with wikitext-2-raw/wiki.test.raw"),
        (archive_of(b" = Another text = \n"), f"expected SHA-256 {prepare_data.WIKITEXT_SHA256}, got "),
    ],
)
def test_download_refused(tmp_path, tiny_vocab, capsys, monkeypatch, answer, sentence):
    answer_with(monkeypatch, answer)
    assert prepare_data.main(["--vocab", str(tiny_vocab), "--output", str(tmp_path / "out")]) == 3
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_vocabulary_download_refused(tmp_path, capsys, monkeypatch):
    def get_encoding(name):
        raise ConnectionError("refused")

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    (tmp_path / "text.txt").write_text("he")
    assert prepare_data.main(["--text", str(tmp_path / "text.txt"), "--output", str(tmp_path)]) == 3
    assert "give a folder with vocab.bpe and encoder.json: --vocab DIR" in capsys.readouterr().err


def public_wikitext() -> bytes:
    """The file of the public archive: the raw copy's rows, blank rows where the processed copy has them."""
    rows = iter((SHARED / "wikitext-2-raw" / "wiki.test.raw").read_bytes().split(b"\r\n"))
    layout = (SHARED / "wikitext-2" / "test.txt").read_bytes().splitlines()
    return b"".join((next(rows) if row.strip() else row) + b"\n" for row in layout)


@needs_shared
def test_downloaded_wikitext_is_kept_and_checked(tmp_path, capsys, monkeypatch):
    text = (SHARED / "wikitext-2-raw" / "wiki.test.raw").read_bytes()
    answer_with(monkeypatch, archive_of(public_wikitext()))
    arguments = ["--vocab", str(SHARED / "gpt2-bpe"), "--output", str(tmp_path / "out")]
    assert prepare_data.main(arguments) == 0
    assert (tmp_path / "out" / "wiki.test.raw").read_bytes() == text
    answer_with(monkeypatch, urllib.error.URLError("refused"))
    assert prepare_data.main(arguments) == 0
    (tmp_path / "out" / "wiki.test.raw").write_bytes(text[:-1])
    assert prepare_data.main(arguments) == 3
    assert "remove it to download it again" in capsys.readouterr().err


@needs_shared
@pytest.mark.parametrize(("recipe", "count"), [("whole", 283287), ("rows", 286177)])
def test_wikitext_token_counts(tmp_path, recipe, count):
    """The counts published for this copy of the text; the ids decode to the text again."""
    text = (SHARED / "wikitext-2-raw" / "wiki.test.raw").read_bytes()
    assert (
        run(tmp_path, text, SHARED / "gpt2-bpe", "--recipe", recipe, "--sha256", prepare_data.WIKITEXT_SHA256)
        == 0
    )
    tokens = tokens_of(tmp_path)
    assert len(tokens) == count and max(tokens) < 50257
    encoding, _ = prepare_data.load_encoding(SHARED / "gpt2-bpe")
    if recipe == "whole":
        assert encoding.decode_bytes(tokens) == text.replace(b"\r\n", b"\n")


@needs_shared
def test_reference_token_count(tmp_path):
    text = public_wikitext()
    assert prepare_data.sha256(text).startswith("173c87a53759e020")  # wiki.test.raw as published
    assert run(tmp_path, text, SHARED / "gpt2-bpe", "--recipe", "rows") == 0
    assert len(tokens_of(tmp_path)) == 287644
