"""A transformers model generates through an int8 cache: python hf_generate.py FOLDER_OR_NAME_OF_MODEL"""

import sys

import kvfuse.hf
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], attn_implementation="kvfuse")
prompts = torch.tensor([[0, 0, 17, 3, 42], [11, 9, 5, 30, 2]])  # the first is shorter: padded on the left
mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
cache = kvfuse.hf.FusedCache(model.config, dtype="int8", capacity=64)
tokens = model.generate(
    prompts, attention_mask=mask, past_key_values=cache, max_new_tokens=30, do_sample=False
)
print(tokens.tolist())
print(f"{cache.bytes_in_use} bytes of cache in use, {cache.nbytes} held")
