"""Hugging Face transformers on the fused operators: a cache and an attention implementation.

::

    import kvfuse.hf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="kvfuse")
    cache = kvfuse.hf.FusedCache(model.config, dtype="int8")
    tokens = model.generate(**inputs, past_key_values=cache)

Importing this module registers the attention implementation "kvfuse". With a ``FusedCache`` it attends to
what the cache stores, without dequantising it into memory. Everything else that a model asks of it (another
cache, no cache, training, dropout, sliding windows, a mask of the caller's own) is left to transformers'
"sdpa".
"""

try:
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError("kvfuse.hf: expected transformers, found none (pip install 'kvfuse[hf]')") from error

from kvfuse.hf.attention import register
from kvfuse.hf.cache import FusedCache

register()

__all__ = ["FusedCache"]
