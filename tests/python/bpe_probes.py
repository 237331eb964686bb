"""The C++ byte-level BPE as a process, tiktoken beside it, and vocabularies to give both."""

import collections
import itertools
import json
import struct
import subprocess
from pathlib import Path

import numpy
from kvfuse import prepare_data


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


def learned_vocabulary(folder) -> Path:
    """Merges learned from this file and some other scripts: needs nothing from outside."""
    text = (
        Path(__file__).read_bytes()[:5000]
        + "привет мир приветы 你好世界 你好 été étés 12 122 1222".encode() * 20
    )
    return write_vocabulary(folder, learn_merges(text, 200))
