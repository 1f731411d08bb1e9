"""The tokenizer of a model that embeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from max.pipelines.context.exceptions import PromptTooLongError
from max.pipelines.lib import PipelineConfig
from typing_extensions import override

from ..errors import UserError
from ..fields import Fields, read_json
from ..hf_files import find_file
from ..tokenizer import MistralTokenizer


class MistralEmbeddingTokenizer(MistralTokenizer):
    """:class:`MistralTokenizer` that ends a text as its checkpoint says.

    The embedding is the last token's, which e5-mistral and its like were trained
    to have as ``</s>``. Their ``tokenizer_config.json`` has ``add_eos_token``,
    which transformers 4 obeys; transformers 5 goes by ``tokenizer.json``, which
    has no ``</s>`` in it. Ids that end with it already stay as they are.
    """

    def __init__(
        self,
        model_path: str,
        pipeline_config: PipelineConfig | None,
        *,
        revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_path, pipeline_config, revision=revision, **kwargs)
        self._last_token: int | None = None
        path = find_file(model_path, "tokenizer_config.json", revision)
        if path is not None:
            config = Fields(str(path), read_json(path).get)
            if config.boolean("add_eos_token", default=False):
                self._last_token = self.delegate.eos_token_id
                if self._last_token is None:
                    raise UserError(
                        f"{path} has add_eos_token, but no eos_token. Copy the "
                        "tokenizer that belongs to the checkpoint."
                    )

    @override
    async def encode(
        self, prompt: str | Sequence[int], add_special_tokens: bool = True
    ) -> npt.NDArray[np.integer[Any]]:
        """Returns the ids of a text, or ids themselves: int64 ``[tokens]``.

        Raises:
            InputError: (a ``ValueError``) if an id is not in the model's
                vocabulary, or there are too many.
        """
        ids = await super().encode(prompt, add_special_tokens)
        last = self._last_token
        if not isinstance(prompt, str) or not add_special_tokens or last is None:
            return ids
        if len(ids) == 0 or ids[-1] != last:
            ids = np.append(ids, last)
        if self.max_length and len(ids) > self.max_length:
            raise PromptTooLongError(len(ids), self.max_length)
        return ids
