"""nanoGPT with a KV cache: a patch for its unmodified ``GPT``, and its attention as a module of one's own.

``patch(model, version="v2")`` gives a nanoGPT model a ``generate`` that runs each token once; nothing else of
the model changes. ``CausalSelfAttention`` replaces nanoGPT's in code that keeps positions and cache itself.
"""

from kvfuse.nanogpt.attention import CausalSelfAttention, cached
from kvfuse.nanogpt.gpt import CachedGpt, patch, unpatch

__all__ = ["CachedGpt", "CausalSelfAttention", "cached", "patch", "unpatch"]
