"""The models of FlashAttention 1 to 4 and of this project's decode attention, under their documented name."""

from kvfuse.roofline.predict import attention_names, compare_attention
from kvfuse.roofline.results import AttentionPrediction

__all__ = ["AttentionPrediction", "attention_names", "compare_attention"]
