"""What the graph of a model depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from max.dtype import DType
from max.graph import DeviceRef
from max.graph.weights import WeightData
from max.nn.kv_cache import KVCacheParamInterface, KVCacheParams
from max.nn.transformer import ReturnLogits

from . import kernels
from .formats import Linears, WeightFormat
from .formats.base import Part
from .hf_rope import RopeScaling
from .kernels import KernelMode
from .kernels.packing import Encoding
from .kv_cache import FULL, check_cache, effective_windows, kv_groups, kv_places
from .sharing import Sharing
from .weights.names import HEAD
from .weights.packed import encodings_of

# Weights of a block: those of 1.1B have 44 million, those of 3B 100, of 7B 218.
_SMALL_BLOCK = 2**26


@dataclass(kw_only=True)
class GraphConfig:
    """Everything the graph depends on, and what follows from it.

    :class:`.MistralConfig` makes one of what MAX and Hugging Face know.
    """

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_hidden_layers: int
    head_dim: int
    """Width of one attention head; need not be hidden_size / num_attention_heads."""
    vocab_size: int
    rope_theta: float
    max_seq_len: int
    """Longest sequence in tokens, prompt and output together."""
    rms_norm_eps: float
    feed_forward_length: int
    """HF's ``intermediate_size``."""
    dtype: DType
    """Of activations, and of weights that are neither packed nor quantized."""
    kv_params: KVCacheParamInterface
    attention_multiplier: float
    """Scale of the attention scores, ``1 / sqrt(head_dim)``."""
    devices: list[DeviceRef]
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN
    """Last token, all, or a variable number of logits."""

    tie_word_embeddings: bool = False
    """Whether the head shares the embedding's weight."""
    sliding_windows: list[int | None] = field(default_factory=list)
    """How many keys a token sees in each layer, itself included; ``None`` for
    all. Empty means all in every layer."""
    rope_scaling: RopeScaling | None = None
    """How RoPE is stretched beyond the context it was trained on."""
    query_scaling: tuple[float, int] | None = None
    """Ministral 3's ``(beta, original_max_position_embeddings)``."""
    encodings: dict[str, Encoding] = field(default_factory=dict)
    """How each weight is packed, by its name in the graph, where the CPU
    kernels run; empty where MAX's own operations do, on weights of ``dtype``."""
    quantization: WeightFormat | None = None
    """The weight format of a quantized checkpoint for GPUs."""
    restored: bool = False
    """Whether the checkpoint is quantized, and its weights become bfloat16 at load."""
    data_parallel_degree: int = 1
    """How many replicas of the model share the devices."""
    embeds: bool = False
    """Whether the graph returns an embedding of each request in place of logits.
    Its KV cache is then of one layer, which each layer uses anew."""
    step_tokens: int | None = None
    """How many tokens of a prompt a step reads at most; ``None`` for all."""
    use_subgraphs: bool = True
    """Whether blocks that are alike may share one compiled subgraph."""
    kernel_mode: KernelMode = field(default_factory=kernels.mode)
    """Which CPU kernels run: ``MAX_MISTRAL_KERNELS``, read when this is made."""

    def __post_init__(self) -> None:
        _ = self.sharing  # or raises
        if self.quantization is not None:
            self.quantization.check_runs(self.devices, self.dtype)
        dtype = self.kv_groups[0].dtype
        check_cache(dtype, self.layer_windows, self.devices, self.kernel_mode)

    def finalize(
        self,
        state_dict: Mapping[str, WeightData],
        return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN,
    ) -> Self:
        """Returns a copy with what only the loaded weights say.

        Whether the head is tied shows in the checkpoint, not in its config; so
        does how each tensor is encoded, and which layers are quantized.

        Args:
            state_dict: The tensors by their names in the graph.
            return_logits: Which logits the graph returns.

        Raises:
            UserError: (a ``ValueError``) if the weights cannot run so: see
                :meth:`.WeightFormat.finalize`.
        """
        quantization = self.quantization
        if quantization is not None:
            widths = {
                "query": self.num_attention_heads * self.head_dim,
                "MLP": self.feed_forward_length,
                "key": self.sharing.total_kv_heads * self.head_dim,
            }
            quantization = quantization.finalize(state_dict, widths, self.sharing)
        return replace(
            self,
            return_logits=return_logits,
            tie_word_embeddings=HEAD.graph not in state_dict,
            encodings=encodings_of(state_dict),
            quantization=quantization,
        )

    @property
    def sharing(self) -> Sharing:
        """How the devices share the model and its heads."""
        return Sharing(
            len(self.devices),
            self.data_parallel_degree,
            self.num_attention_heads,
            self.num_key_value_heads,
        )

    @property
    def layer_windows(self) -> list[int | None]:
        """Each layer's window, or ``None`` where no sequence can outgrow it."""
        windows = self.sliding_windows or [None] * self.num_hidden_layers
        return effective_windows(windows, self.max_seq_len)

    @property
    def kv_groups(self) -> list[KVCacheParams]:
        """The parameters of each KV cache; see :mod:`.kv_cache`."""
        return kv_groups(self.kv_params)

    @property
    def kv_places(self) -> list[tuple[int, int]]:
        """Each layer's KV cache and place in it; see :mod:`.kv_cache`."""
        windows = self.sliding_windows or [None] * self.num_hidden_layers
        if self.embeds:
            return [(FULL, 0)] * len(windows)
        return kv_places(self.kv_params, windows)

    def layer_encodings(self, layer: int) -> dict[str, Encoding]:
        """Returns how a block's projections are packed, by their last names."""
        prefix = f"layers.{layer}."
        return {
            name.split(".")[-2]: encoding
            for name, encoding in self.encodings.items()
            if name.startswith(prefix)
        }

    @property
    def shares_blocks(self) -> bool:
        """Whether blocks that are alike are one subgraph, which is compiled once.

        Each call of it takes about 20 us of a CPU, which is a twentieth of a small
        block: those are compiled one by one.
        """
        heads = self.num_attention_heads + self.num_key_value_heads
        weights = 2 * self.hidden_size * heads * self.head_dim
        weights += 3 * self.hidden_size * self.feed_forward_length
        is_small = bool(self.encodings) and weights < _SMALL_BLOCK
        return self.use_subgraphs and not is_small

    @property
    def needs_own_matmul(self) -> bool:
        """Whether its quantized products run on ``gpu_kernels/``."""
        return self.quantization is not None and self.quantization.needs_own_matmul

    def linears(self, part: Part, layer: int) -> Linears:
        """Returns what a block's attention or MLP is made of, where not packed."""
        if self.quantization is None:
            return Linears(self.dtype)
        return self.quantization.linears(part, layer, self.dtype)

    def layer_kind(self, layer: int) -> tuple[object, ...]:
        """Returns what distinguishes a block's graph from another's."""
        quantization = self.quantization
        return (
            self.layer_windows[layer],
            self.kv_places[layer][0],
            tuple(sorted(self.layer_encodings(layer).items())),
            quantization and quantization.layer_kind(layer),
        )
