"""An unmodified nanoGPT that runs each token once: python nanogpt_drop_in.py FOLDER_OF_NANOGPT"""

import sys

import torch
from kvfuse.nanogpt import patch

sys.path.insert(0, sys.argv[1])  # nanoGPT's own model.py
from model import GPT, GPTConfig

torch.manual_seed(0)
model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=256, vocab_size=256)).eval()
prompt = torch.tensor([[72, 101, 108, 108, 111]])
before = model.generate(prompt, max_new_tokens=100, top_k=1)
patch(model, version="v1")  # v2: the cache in int8
after = model.generate(prompt, max_new_tokens=100, top_k=1)
print(f"same tokens: {torch.equal(before, after)}")
