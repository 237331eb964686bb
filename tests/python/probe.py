"""Logits and greedy tokens of our model, without any of the runner's code."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch


@dataclass
class Probe:
    """gpt2_probe on one checkpoint."""

    program: Path
    weights: Path
    sizes: dict

    def _run(self, mode, version, tokens, new_tokens, *sampling):
        sizes = [self.sizes[key] for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")]
        command = [self.program, mode, version, self.weights, *sizes, new_tokens, *sampling]
        header = numpy.array(tokens.shape, dtype=numpy.int64).tobytes()
        result = subprocess.run(
            [str(word) for word in command],
            input=header + tokens.numpy().tobytes(),
            capture_output=True,
            timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # small work: threads would wait for each other
        )
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout

    def logits(self, version, tokens):
        flat = numpy.frombuffer(self._run("logits", version, tokens, 0), dtype=numpy.float32)
        return torch.from_numpy(flat.copy()).view(*tokens.shape, self.sizes["vocab_size"])

    def generate(self, version, tokens, new_tokens, *sampling):
        """Greedy, or with ``sampling``: temperature, top_k, top_p and seed."""
        flat = numpy.frombuffer(
            self._run("generate", version, tokens, new_tokens, *sampling), dtype=numpy.int64
        )
        return torch.from_numpy(flat.copy()).view(tokens.shape[0], -1)
