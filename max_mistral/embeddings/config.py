"""The config of a model that embeds: its decoder's, and the cache of one step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from max.nn.kv_cache import KVCacheParams, KVConnectorType
from max.pipelines.lib import MAXModelConfig, PipelineConfig
from max.pipelines.lib.interfaces.arch_config import ArchConfig
from max.pipelines.modeling.config_enums import SupportedEncoding
from max.support.math import ceildiv

from ..encoding import DEFAULT_ENCODING, SUPPORTED_ENCODINGS
from ..errors import UserError
from ..model_config import MistralConfig
from .recipe import check_recipe


@dataclass(kw_only=True)
class MistralEmbeddingConfig(ArchConfig):
    """What the graph depends on, and how much a step takes.

    No ``MistralConfig`` itself, whose KV cache MAX would plan memory for.
    """

    # MAX reads them off the class.
    DEFAULT_ENCODING: ClassVar[SupportedEncoding] = DEFAULT_ENCODING
    SUPPORTED_ENCODINGS: ClassVar[set[SupportedEncoding]] = SUPPORTED_ENCODINGS

    decoder: MistralConfig
    """With ``embeds``; its KV cache is of one layer, for one step's texts, and a
    step reads the longest text at once, whatever --max-batch-input-tokens says."""

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
            max_seq_len: Longest text in tokens; by default what
                :meth:`calculate_max_seq_len` returns.

        Raises:
            UserError: (a ``ValueError``) if the checkpoint's config asks for what
                this package cannot compute, or is of a model that makes its
                embeddings in another way.
        """
        model = model_config or pipeline_config.model
        _check_flags(model)
        decoder = MistralConfig.initialize(
            pipeline_config, model_config, max_seq_len=max_seq_len
        )
        check_recipe(model)
        # Nothing is kept from step to step, nor from layer to layer, so there is
        # room for numbers as they are.
        cache = decoder.kv_groups[0]
        step_tokens = pipeline_config.runtime.max_batch_input_tokens
        chosen = pipeline_config.model.kv_cache.kv_cache_format is not None
        one_layer = replace(
            cache,
            dtype=cache.dtype if chosen else decoder.dtype,
            num_layers=1,
            window_size=None,
            enable_prefix_caching=False,
        )
        return cls(
            decoder=replace(
                decoder,
                embeds=True,
                kv_params=one_layer,
                step_tokens=max(step_tokens, decoder.max_seq_len),
            ),
        )

    @staticmethod
    def calculate_max_seq_len(*args: Any, **kwargs: Any) -> int:
        """See :meth:`MistralConfig.calculate_max_seq_len`."""
        return MistralConfig.calculate_max_seq_len(*args, **kwargs)

    def get_max_seq_len(self) -> int:
        """Returns the longest text in tokens."""
        return self.decoder.max_seq_len

    @property
    def kv_params(self) -> KVCacheParams:
        """The parameters of the cache of a step."""
        (params,) = self.decoder.kv_groups
        return params

    @property
    def step_pages(self) -> int:
        """How many pages of the cache a step's texts may fill, each its own ones."""
        longest = self.decoder.step_tokens
        assert longest is not None, "set by initialize"
        return ceildiv(longest, self.kv_params.page_size)

    @property
    def cache_bytes(self) -> int:
        """How much memory the cache takes, on all devices together."""
        leaves = self.kv_params.leaves().values()
        # MAX keeps a block for itself, and may fill one of each kind in part.
        blocks = self.step_pages + 1 + len(leaves)
        per_block = sum(leaf.bytes_per_page for leaf in leaves)
        return blocks * per_block * len(self.kv_params.devices)

    def pages(self, tokens: int) -> int:
        """Returns how many pages of the cache a text fills."""
        return ceildiv(tokens, self.kv_params.page_size)


def _check_flags(model: MAXModelConfig) -> None:
    connector = model.kv_cache.kv_connector_config.type
    if connector != KVConnectorType.null:
        raise UserError(
            f"--kv-connector-config has the type {connector.value}, but a model that "
            "embeds keeps no keys and values from step to step. Leave it out."
        )
    if not model.pool_embeddings:
        raise UserError(
            "--no-pool-embeddings asks for a vector of each token, but max_mistral "
            "gives one of each text. Leave it out."
        )
    if model.data_parallel_degree > 1:
        raise UserError(
            f"--data-parallel-degree is {model.data_parallel_degree}, but MAX gives "
            "all texts to one replica. Leave it out, or start several servers."
        )
