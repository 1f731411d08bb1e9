"""From a Hugging Face config to a typed :class:`MistralConfig`.

What this package cannot compute exactly is refused here, by name, before
anything is compiled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from max.dtype import DType
from max.graph import DeviceRef
from max.nn.kv_cache import KVCacheParamInterface
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
from .graph_config import GraphConfig
from .hf_quantization import read_quantization
from .hf_rope import query_scaling, rope_scaling, rope_theta
from .kv_cache import default_cpu_dtype, make_kv_params
from .kv_room import for_planning
from .refused_flags import refuse_encoding, refuse_flags, refuse_subfolder
from .sharing import Sharing
from .weights.gguf_agrees import check_config
from .weights.gguf_file import GGUFCheckpoint


@dataclass(kw_only=True)
class MistralConfig(GraphConfig, ArchConfigWithKVCache):
    """A model's :class:`.GraphConfig`, as MAX asks for it."""

    # MAX reads them off the class.
    DEFAULT_ENCODING: ClassVar[SupportedEncoding] = DEFAULT_ENCODING
    SUPPORTED_ENCODINGS: ClassVar[set[SupportedEncoding]] = SUPPORTED_ENCODINGS

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
        """Like :meth:`initialize`, with the HF config at hand.

        Args:
            pipeline_config: What the user asked for.
            huggingface_config: The checkpoint's.
            max_seq_len: As :meth:`initialize` takes it.

        Raises:
            UserError: (a ``ValueError``) as :meth:`initialize` does.
        """
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
        quantization, restored = None, False
        if any(path.suffix == ".gguf" for path in model.weight_path):
            for path in model.resolved_weight_paths():
                # MAX reads it before our adapter does, and says less of what is
                # wrong with it.
                checkpoint = GGUFCheckpoint(path, vocabulary=False)
                check_config(checkpoint, text)
                scaling = checkpoint.rope_scaling(scaling, head_dim, rope_theta(text))
        else:
            quantization = read_quantization(huggingface_config, encoding)
            if quantization is None:
                refuse_encoding(encoding)
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
