"""The tokens of a text: from a token file, from plain text, or WikiText-2's."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy

from kvfuse import prepare_data

MAX_TOKEN_FILE_BYTES = 4 << 30
WIKITEXT_TOKENS = "wikitext-2-raw-test.bin"


@dataclass(frozen=True)
class Dataset:
    """Token ids to score.

    Attributes:
        path: as it was given.
        sha256: of the file's bytes.
        tokens: uint16.
        decode: the bytes behind ids; None for a token file, whose text is not known.
    """

    path: str
    sha256: str
    tokens: numpy.ndarray
    decode: Callable[[list[int]], bytes] | None = None


def read_dataset(path: str | os.PathLike[str], vocab_size: int, vocab: Path | None = None) -> Dataset:
    """A token file (``.bin``: little-endian uint16), or a text, cut into tokens by GPT-2's BPE.

    ``vocab`` is a folder with vocab.bpe and encoder.json; None: tiktoken downloads them, once.

    Raises:
        DataError: the file is missing or empty, or holds an id that the model does not know.
    """
    data = prepare_data.read_file(Path(path))
    is_tokens = Path(path).suffix == ".bin"
    what = "token file" if is_tokens else "text file"
    if not 1 <= len(data) <= MAX_TOKEN_FILE_BYTES:
        raise prepare_data.DataError(
            f"{path}: expected a {what} of 1 to {MAX_TOKEN_FILE_BYTES} bytes, got {len(data)}"
        )
    decode = None
    if is_tokens:
        if len(data) % 2:
            raise prepare_data.DataError(
                f"{path}: expected little-endian uint16 tokens, an even number of bytes, got {len(data)}"
            )
        tokens = numpy.frombuffer(data, dtype="<u2")
    else:
        encoding, _ = prepare_data.load_encoding(vocab)
        text = data.decode("utf-8", errors="replace")  # as the C++ tokenizer does
        tokens = numpy.array(encoding.encode_ordinary(text), dtype="<u2")
        decode = encoding.decode_bytes
    unknown = numpy.flatnonzero(tokens >= vocab_size)
    if unknown.size:
        raise prepare_data.DataError(
            f"{path}: token {unknown[0]} of {tokens.size}: expected an id below {vocab_size} (the model's "
            f"vocab_size), got {tokens[unknown[0]]} (made with another vocabulary, or no token file)"
        )
    return Dataset(str(path), hashlib.sha256(data).hexdigest(), tokens, decode)


def wikitext_tokens(vocab: Path | None = None, cache: Path | None = None) -> Path:
    """The token file of WikiText-2's test split, made once from a download with a pinned hash.

    ``cache``: a folder; None: kvfuse in XDG_CACHE_HOME or ~/.cache.

    Raises:
        DataError: text or vocabulary cannot be downloaded, or are not what they should be.
        OSError: the folder cannot be written.
    """
    if cache is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvfuse"
    path = cache / WIKITEXT_TOKENS
    if not path.is_file():
        data = prepare_data.download_wikitext(cache / "wiki.test.raw")
        encoding, _ = prepare_data.load_encoding(vocab)
        tokens = prepare_data.tokenize(prepare_data.decode_text(data, str(path)), "whole", encoding)
        prepare_data.write_whole(path, tokens.tobytes())
    return path
