"""A transformers ``Cache`` that may be int8, and that the fused operators attend to."""

from transformers.cache_utils import Cache, get_layer_types_and_kwargs
from transformers.configuration_utils import PreTrainedConfig

from kvfuse.hf.layer import FusedLayer
from kvfuse.layer_cache import KV_CACHE_DTYPES


class FusedCache(Cache):
    """The keys and values of a model, in its own dtype or as int8 codes with a scale for each token and head.

    Give it to ``model.generate(..., past_key_values=...)`` or to ``model(...)``. Under the attention
    implementation "kvfuse" the operators attend to what it stores; any other gets the dequantised values and
    computes the same, slower. It serves one batch at a time; ``reset()`` makes it ready for the next.
    """

    layers: list[FusedLayer]

    def __init__(
        self,
        config: PreTrainedConfig,
        dtype: str = "int8",
        capacity: int | None = None,
        residual_length: int = 0,
    ) -> None:
        """An empty cache; memory is taken when the first tokens come.

        Args:
            config: that of the model.
            dtype: what is stored: "int8", or "model" for values of the model's dtype.
            capacity: tokens of each sequence to make room for at once. If None the cache grows by 128 tokens
                at a time, which costs a copy.
            residual_length: beside int8, the most tokens of each sequence, the newest, that stay in the
                model's dtype; at least half as many do. Predictions are then nearer to a float cache's, for
                so many tokens of its size.

        Raises:
            ValueError: an unknown dtype, a capacity below 1, a residual_length below 0 or beside another
                dtype than int8, or a model with layers of another kind than full attention.
        """
        if dtype not in KV_CACHE_DTYPES:
            raise ValueError(f"kvfuse.hf: expected a dtype of {' or '.join(KV_CACHE_DTYPES)}, got {dtype!r}")
        if capacity is not None and capacity < 1:
            raise ValueError(f"kvfuse.hf: expected a capacity of at least 1 token, got {capacity}")
        if residual_length < 0 or (residual_length > 0 and dtype != "int8"):
            raise ValueError(
                "kvfuse.hf: expected a residual_length of 0, or of more tokens with dtype 'int8', got "
                f"{residual_length} with {dtype!r}"
            )
        layer_types, _ = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        for index, layer_type in enumerate(layer_types):
            if layer_type != "full_attention":
                raise ValueError(
                    f"kvfuse.hf: expected a model whose layers are all full_attention, got {layer_type} in "
                    f"layer {index} (use transformers' DynamicCache; attn_implementation='kvfuse' takes it)"
                )
        super().__init__(layers=[FusedLayer(dtype, capacity, residual_length) for _ in layer_types])

    @property
    def nbytes(self) -> int:
        """Bytes held, whether or not tokens fill them."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the tokens that are stored."""
        return sum(layer.bytes_in_use for layer in self.layers)
