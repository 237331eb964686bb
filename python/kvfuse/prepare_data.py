"""Turns raw text into a token file: GPT-2 token ids as little-endian uint16, with a description beside it.

Imports nothing of kvfuse, so that scripts/prepare_data.py needs nothing built.
"""

import argparse
import hashlib
import importlib
import io
import json
import os
import sys
import urllib.request
import zipfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    import tiktoken

# WikiText-2 raw, test split (CC BY-SA). The archive holds it with blank rows and LF; the text pinned here is
# the same without blank rows and with CRLF.
WIKITEXT_URL = (
    "https://huggingface.co/datasets/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/"
    "wikitext-2-raw-v1.zip"
)
WIKITEXT_MEMBER = "wikitext-2-raw/wiki.test.raw"
WIKITEXT_SHA256 = "4f3e427e4aff23acff917a8a51aeae21bf12832256e26914c8fc250dcef4103c"
MAX_DOWNLOAD_BYTES = 16 << 20
TIMEOUT_S = 30

RECIPES = {
    "whole": "CRLF to LF, then the whole text at once",
    "rows": "CRLF to LF, then the rows with their line ends, blank ones emptied, joined by blank lines",
}


class DataError(Exception):
    """One sentence: what was expected, what came, what to do."""


class DownloadError(DataError):
    """Something that may be on this machine instead: a command adds how it is told where."""

    def __init__(self, problem: str, missing: str) -> None:
        super().__init__(problem)
        self.missing = missing  # "text" or "vocabulary"


HINTS = {
    "text": "give a text that is already here: --text FILE, make data TEXT=FILE",
    "vocabulary": "give a folder with vocab.bpe and encoder.json: --vocab DIR, make data VOCAB=DIR",
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def require_sha256(data: bytes, expected: str, what: str) -> bytes:
    if sha256(data) != expected.lower():
        raise DataError(
            f"{what}: expected SHA-256 {expected}, got {sha256(data)} ({len(data)} bytes); it is not used"
        )
    return data


def read_file(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: expected a regular file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None


def wikitext_from_archive(archive: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as folder, folder.open(WIKITEXT_MEMBER) as member:
            text = member.read(MAX_DOWNLOAD_BYTES)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{WIKITEXT_URL}: expected a zip archive with {WIKITEXT_MEMBER}: {error}") from None
    rows = [row for row in text.split(b"\n") if row.strip()]
    text = b"".join(row + b"\r\n" for row in rows)
    return require_sha256(text, WIKITEXT_SHA256, f"{WIKITEXT_URL}: {WIKITEXT_MEMBER}")


def download_wikitext(kept: Path) -> bytes:
    """The pinned text: from `kept`, where an earlier call left it, or from the network."""
    if kept.exists():
        return require_sha256(read_file(kept), WIKITEXT_SHA256, f"{kept} (remove it to download it again)")
    try:
        with urllib.request.urlopen(WIKITEXT_URL, timeout=TIMEOUT_S) as answer:
            archive = answer.read(MAX_DOWNLOAD_BYTES)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(f"{WIKITEXT_URL}: can't be downloaded: {reason}", "text") from None
    text = wikitext_from_archive(archive)
    write_whole(kept, text)
    return text


def import_tiktoken() -> ModuleType:
    try:
        return importlib.import_module("tiktoken")
    except ModuleNotFoundError:
        raise DataError(
            "expected the package tiktoken, which is not installed (pip install 'kvfuse[text]')"
        ) from None


def load_encoding(vocab: Path | None) -> tuple["tiktoken.Encoding", dict[str, str]]:
    """GPT-2's byte-level BPE, and the SHA-256 of the vocabulary files given."""
    tiktoken = import_tiktoken()
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    if vocab is None:
        try:
            return tiktoken.get_encoding("gpt2"), {}
        except (OSError, ValueError) as error:
            reason = type(error).__name__
            raise DownloadError(
                f"tiktoken: the vocabulary of GPT-2 can't be downloaded: {reason}", "vocabulary"
            ) from None
    files = [vocab / "vocab.bpe", vocab / "encoder.json"]
    hashes = {f"{file.name}_sha256": sha256(read_file(file)) for file in files}
    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # tiktoken would keep local files, too, under their old contents
    try:
        ranks = data_gym_to_mergeable_bpe_ranks(str(files[0]), str(files[1]))
    except (AssertionError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{vocab}: expected vocab.bpe and encoder.json of one GPT-2 vocabulary; they don't fit each "
            f"other or are damaged ({type(error).__name__})"
        ) from None
    if len(ranks) >= 1 << 16:
        raise DataError(f"{vocab}: expected fewer than 65536 tokens, which uint16 can hold, got {len(ranks)}")
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": len(ranks)},
    )
    return encoding, hashes


def decode_text(data: bytes, what: str) -> str:
    if not data:
        raise DataError(f"{what}: expected text, got an empty file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{what}: expected UTF-8, got byte 0x{data[error.start]:02x} at {error.start}"
        ) from None


def tokenize(text: str, recipe: str, encoding: "tiktoken.Encoding") -> numpy.ndarray:
    text = text.replace("\r\n", "\n")
    if recipe == "rows":
        rows = text.removesuffix("\n").split("\n")
        text = "\n\n".join(row + "\n" if row.strip() else "" for row in rows)
    return numpy.array(encoding.encode_ordinary(text), dtype="<u2")


def write_whole(path: Path, data: bytes) -> None:
    """All of the file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def prepare(arguments: argparse.Namespace) -> str:
    if arguments.text is None:
        name, source = "wikitext-2-raw-test", WIKITEXT_URL
        data = download_wikitext(arguments.output / "wiki.test.raw")
    else:
        name, source = arguments.text.stem, arguments.text.name
        data = read_file(arguments.text)
        if arguments.sha256:
            require_sha256(data, arguments.sha256, str(arguments.text))
    text = decode_text(data, str(arguments.text or source))
    encoding, vocab_hashes = load_encoding(arguments.vocab)
    tokens = tokenize(text, arguments.recipe, encoding)

    target = arguments.output / f"{arguments.name or name}.bin"
    description = {
        "schema_version": 1,
        "source": source,
        "text_sha256": sha256(data),
        "text_bytes": len(data),
        "text_words": len(text.split()),
        "recipe": f"{arguments.recipe}: {RECIPES[arguments.recipe]}",
        "tokenizer": {
            "name": "gpt2",
            "tiktoken": import_tiktoken().__version__,
            "vocab_size": encoding.n_vocab,
            **vocab_hashes,
        },
        "tokens": len(tokens),
        "token_file": target.name,
        "token_file_sha256": sha256(tokens.tobytes()),
    }
    write_whole(target, tokens.tobytes())
    write_whole(target.with_suffix(".json"), (json.dumps(description, indent=2) + "\n").encode())
    return f"{target}: {len(tokens)} tokens from {len(data)} bytes, {description['text_words']} words"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8 text (default: download WikiText-2 raw, test)"
    )
    parser.add_argument("--sha256", metavar="HEX", help="refuse a --text with another SHA-256")
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="DIR",
        help="folder with GPT-2's vocab.bpe and encoder.json (default: download)",
    )
    parser.add_argument(
        "--recipe", choices=RECIPES, default="whole", help="; ".join(map(": ".join, RECIPES.items()))
    )
    parser.add_argument("--name", help="name of the token file (default: that of the text)")
    parser.add_argument("--output", type=Path, default=Path("data"), metavar="DIR", help="default: data")
    arguments = parser.parse_args(argv)
    if arguments.sha256 and arguments.text is None:
        parser.error("--sha256: expected together with --text (the download has a hash of its own)")
    if arguments.name and Path(arguments.name).name != arguments.name:
        parser.error(
            f"--name: expected a name without folders, got {arguments.name!r} (--output takes the folder)"
        )
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        print(prepare(arguments))
    except DataError as error:
        hint = f" ({HINTS[error.missing]})" if isinstance(error, DownloadError) else ""
        print(f"prepare_data: error: {error}{hint}", file=sys.stderr)
        return 3
    except OSError as error:
        print(f"prepare_data: error: {arguments.output}: can't be written: {error.strerror}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
