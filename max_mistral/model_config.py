"""From a Hugging Face config to a typed :class:`MistralConfig`.

What this package cannot compute exactly is refused here, by name, before
anything is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from max.dtype import DType
from max.graph import DeviceRef
from max.graph.weights import WeightData
from max.nn.kv_cache import KVCacheParamInterface, KVCacheParams
from max.nn.transformer import ReturnLogits
from max.pipelines.kv_cache import cache_dtype_for_encoding
from max.pipelines.lib import KVCacheConfig, MAXModelConfig, PipelineConfig
from max.pipelines.lib.interfaces.arch_config import ArchConfigWithKVCache
from max.pipelines.modeling.config_enums import SupportedEncoding
from transformers import PretrainedConfig

from . import hf_config as hf
from . import kernels
from ._max_calls import find_configs
from .encoding import (
    DEFAULT_ENCODING,
    SUPPORTED_ENCODINGS,
    activation_dtype,
    resolved_encoding,
)
from .errors import UserError
from .formats import Linears, WeightFormat
from .formats.base import Part
from .hf_quantization import read_quantization
from .hf_rope import RopeScaling, query_scaling, rope_scaling, rope_theta
from .kernels import KernelMode
from .kernels.packing import Encoding
from .kv_cache import (
    FULL,
    check_cache,
    default_cpu_dtype,
    effective_windows,
    kv_groups,
    kv_places,
    make_kv_params,
)
from .kv_room import for_planning
from .refused_flags import refuse_flags, refuse_subfolder
from .sharing import Sharing
from .weights.gguf_agrees import check_config
from .weights.gguf_file import GGUFCheckpoint
from .weights.names import HEAD
from .weights.packed import encodings_of

# Weights of a block: those of 1.1B have 44 million, those of 3B 100, of 7B 218.
_SMALL_BLOCK = 2**26


@dataclass(kw_only=True)
class MistralConfig(ArchConfigWithKVCache):
    """Everything the graph depends on."""

    # MAX reads them off the class.
    DEFAULT_ENCODING: ClassVar[SupportedEncoding] = DEFAULT_ENCODING
    SUPPORTED_ENCODINGS: ClassVar[set[SupportedEncoding]] = SUPPORTED_ENCODINGS

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

    @staticmethod
    def get_head_dim(huggingface_config: PretrainedConfig) -> int:
        """Returns ``head_dim``; null or missing means hidden_size / heads."""
        return hf.head_dim(hf.text_config(huggingface_config))

    @staticmethod
    def get_num_layers(huggingface_config: PretrainedConfig) -> int:
        """Returns the number of decoder blocks."""
        return hf.text_config(huggingface_config).num_hidden_layers

    def get_kv_params(self) -> KVCacheParamInterface:
        """Returns the KV cache parameters, by which MAX plans memory.

        Where there are windows they are wider than :attr:`kv_params` has them; see
        :func:`.kv_room.for_planning`.
        """
        return for_planning(self.kv_params, self.step_tokens)

    def get_max_seq_len(self) -> int:
        """Returns the longest sequence in tokens, prompt and output together."""
        return self.max_seq_len

    @staticmethod
    def calculate_max_seq_len(*args: Any, **kwargs: Any) -> int:
        """Returns ``max_length`` if it is set, else the model's own limit.

        Takes ``(pipeline_config, huggingface_config)`` or, as the framework
        calls it, ``(huggingface_config, model_config)``.

        Raises:
            UserError: (a ``ValueError``) if ``max_length`` is not positive or above the
                model's ``max_position_embeddings``; names both.
            TypeError: If the arguments are neither pair.
        """
        huggingface_config, model_config = find_configs(*args, **kwargs)
        return hf.max_seq_len(
            hf.text_config(huggingface_config), model_config.max_length
        )

    @classmethod
    def construct_kv_params(
        cls,
        huggingface_config: PretrainedConfig,
        pipeline_config: PipelineConfig,
        devices: list[DeviceRef],
        kv_cache_config: KVCacheConfig,
        cache_dtype: DType,
    ) -> KVCacheParamInterface:
        """Returns the KV cache parameters; see :mod:`.kv_cache`.

        Args:
            huggingface_config: The checkpoint's.
            pipeline_config: MAX's.
            devices: Where the model runs.
            kv_cache_config: Its flags.
            cache_dtype: What MAX takes for the encoding. On a CPU without
                ``--kv-cache-format``, ours counts.
        """
        on_cpu = any(device.is_cpu() for device in devices)
        if on_cpu and kv_cache_config.kv_cache_format is None:
            cache_dtype = default_cpu_dtype(kernels.mode())
        return make_kv_params(
            hf.text_config(huggingface_config),
            kv_cache_config,
            cache_dtype,
            devices,
            pipeline_config.model.data_parallel_degree,
            cls.calculate_max_seq_len(pipeline_config, huggingface_config),
        )

    @classmethod
    def initialize(
        cls,
        pipeline_config: PipelineConfig,
        model_config: MAXModelConfig | None = None,
        *,
        max_seq_len: int | None = None,
    ) -> Self:
        """Builds the config of the model that ``pipeline_config`` names.

        Args:
            pipeline_config: What the user asked for.
            model_config: The model's part of it; ``pipeline_config.model`` by
                default.
            max_seq_len: Longest sequence in tokens; by default what
                :meth:`calculate_max_seq_len` returns.

        Raises:
            UserError: (a ``ValueError``) if the checkpoint's config is
                incomplete or asks for what this package cannot compute, or a
                GGUF file cannot be read.
        """
        model_config = model_config or pipeline_config.model
        refuse_subfolder(model_config)
        huggingface_config = model_config.huggingface_config
        if huggingface_config is None:
            raise UserError(
                f"{model_config.model_path} has no config.json that "
                "transformers can read. Point --model at a folder or Hub id "
                "that has one."
            )
        hf.check_required_keys(
            model_config.model_path, model_config.huggingface_model_revision
        )
        return cls.initialize_from_config(
            pipeline_config, huggingface_config, max_seq_len=max_seq_len
        )

    @classmethod
    def initialize_from_config(
        cls,
        pipeline_config: PipelineConfig,
        huggingface_config: PretrainedConfig,
        *,
        max_seq_len: int | None = None,
    ) -> Self:
        """Like :meth:`initialize`, with the HF config at hand."""
        text = hf.text_config(huggingface_config)
        hf.check_family(huggingface_config)
        hf.check_supported(text)
        hf.warn_of_ignored(text)
        model = pipeline_config.model
        Sharing.of(huggingface_config, model)  # or raises, before MAX says less
        refuse_flags(pipeline_config)
        encoding = resolved_encoding(model)
        devices = [DeviceRef(spec.device_type, spec.id) for spec in model.device_specs]
        head_dim = cls.get_head_dim(huggingface_config)
        scaling = rope_scaling(text)
        if _is_gguf(model):
            for path in model.resolved_weight_paths():
                # MAX reads it before our adapter does, and says less of what is
                # wrong with it.
                checkpoint = GGUFCheckpoint(path, vocabulary=False)
                check_config(checkpoint, text)
                scaling = checkpoint.rope_scaling(scaling, head_dim)
        quantization, restored = None, False
        if not _is_gguf(model):
            quantization = read_quantization(huggingface_config, encoding)
        if quantization is not None:
            quantization.check_runs(devices, activation_dtype(model))
            on_cpu = any(device.is_cpu() for device in devices)
            restored = quantization.is_restored(on_cpu=on_cpu)
        if max_seq_len is None:
            max_seq_len = cls.calculate_max_seq_len(pipeline_config, huggingface_config)
        return cls(
            hidden_size=text.hidden_size,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            num_hidden_layers=cls.get_num_layers(huggingface_config),
            head_dim=head_dim,
            vocab_size=text.vocab_size,
            rope_theta=rope_theta(text),
            max_seq_len=max_seq_len,
            rms_norm_eps=text.rms_norm_eps,
            feed_forward_length=text.intermediate_size,
            dtype=activation_dtype(model),
            kv_params=cls.construct_kv_params(
                huggingface_config,
                pipeline_config,
                devices,
                model.kv_cache,
                cache_dtype_for_encoding(encoding, model.kv_cache.kv_cache_format),
            ),
            attention_multiplier=math.sqrt(1.0 / head_dim),
            devices=devices,
            tie_word_embeddings=huggingface_config.tie_word_embeddings,
            sliding_windows=hf.sliding_windows(text),
            rope_scaling=scaling,
            query_scaling=query_scaling(text),
            quantization=None if restored else quantization,
            restored=restored,
            data_parallel_degree=model.data_parallel_degree,
            step_tokens=pipeline_config.runtime.max_num_input_tokens,
            use_subgraphs=model.use_subgraphs,
        )


def _is_gguf(model_config: MAXModelConfig) -> bool:
    return any(path.suffix == ".gguf" for path in model_config.weight_path)
