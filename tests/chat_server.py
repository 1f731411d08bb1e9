"""MAX's real OpenAI routes before a model that plays back chosen tokens.

No graph is compiled: a wire format is tested in a second.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from max.pipelines import PIPELINE_REGISTRY
from max.pipelines.context import GenerationStatus, TextGenerationOutput
from max.pipelines.lib import PipelineConfig
from max.pipelines.lib.registry import _apply_thinking_region
from max.pipelines.modeling.types import PipelineTask
from max.serve.config import Settings
from max.serve.pipelines.llm import TokenGeneratorPipeline
from max.serve.request import register_request
from max.serve.router import openai_routes
from max.serve.worker_interface import ModelWorkerProxy
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from max_mistral.prepare.mistral_tokenizer import write_tokenizer
from workbench.checkpoints import BASE, write_checkpoint
from workbench.runner import make_pipeline_config

BASIC = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]"]
BASIC += ["[/SYSTEM_PROMPT]"]
V3 = [*BASIC, "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
V3 += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
V11 = [*V3, "[CALL_ID]", "[ARGS]"]
V13 = [*V11, "[THINK]", "[/THINK]"]
# Control tokens of a made-up byte-level vocabulary, by tokenizer version.
VOCABULARIES = {"v3": V3, "v11": V11, "v13": V13, "none": BASIC}

TEMPLATE = """\
{{- bos_token -}}
{%- if tools -%}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}[INST]{{ m.content }}[/INST]
{%- elif m.role == 'tool' -%}
[TOOL_RESULTS]{{ m.tool_call_id }}:{{ m.content }}[/TOOL_RESULTS]
{%- elif m.role == 'system' -%}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]
{%- else -%}
{%- if m.reasoning_content -%}[THINK]{{ m.reasoning_content }}[/THINK]{%- endif -%}
{{- m.content -}}
{%- for c in m.tool_calls or [] -%}
[TOOL_CALLS]{{ c.function.name }}#{{ c.id }}{{ c.function.arguments | tojson }}
{%- endfor -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}
"""
PLAIN_TEMPLATE = """\
{%- for m in messages -%}<{{ m.role }}>{{ m.content }}
{% endfor -%}<assistant>"""


LONG = BASE | {"vocab_size": 320, "max_position_embeddings": 8192}


def write_vocabulary(folder: Path, version: str, config: dict[str, Any] = LONG) -> Path:
    """Writes a checkpoint whose tokenizer has the control tokens of a version."""
    special = VOCABULARIES[version]
    write_checkpoint(folder, config)
    pieces = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"<filler_{i}>" for i in range(len(pieces), 320)]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=8192,
    )
    fast.chat_template = PLAIN_TEMPLATE if version == "none" else TEMPLATE
    fast.save_pretrained(folder)
    return folder


def write_real(folder: Path, tokenizer: Path) -> Path:
    """Writes a checkpoint that has a tokenizer file of Mistral's."""
    write_vocabulary(folder, "v3")
    size = write_tokenizer(tokenizer, folder)
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": size}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_config(folder: Path, **flags: Any) -> PipelineConfig:
    """The config of ``max serve --custom-architectures max_mistral`` on a CPU."""
    defaults = {"max_length": 8192, "max_batch_size": 1}
    return make_pipeline_config(folder, **defaults | flags)


# Server-sent events stay with the event loop that they were first used on.
_LOOP = asyncio.Runner()


class Playback(ModelWorkerProxy):
    """A model worker that answers with ``tokens``, some at a time."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.at_a_time = 1
        self.status = GenerationStatus.END_OF_SEQUENCE
        self.context: Any = None

    def cancel(self, request_id: Any) -> None:
        """Does nothing: an answer is over at once."""

    async def stream(self, request_id: Any, context: Any) -> Any:
        self.context = context

        async def answer() -> Any:
            tokens, size = self.tokens, self.at_a_time
            for at in range(0, len(tokens), size):
                last = at + size >= len(tokens)
                output = TextGenerationOutput(
                    request_id=request_id,
                    tokens=tokens[at : at + size],
                    final_status=self.status if last else GenerationStatus.ACTIVE,
                )
                yield [output], at

        return answer()


class ChatServer:
    """A server of one checkpoint.

    Attributes:
        context: What the worker was sent with the last request.
    """

    def __init__(self, folder: Path, **flags: Any) -> None:
        self.config = make_config(folder, **flags)
        self.tokenizer: Any = PIPELINE_REGISTRY.retrieve_tokenizer(self.config)
        self.worker = Playback()
        pipeline = TokenGeneratorPipeline(
            model_name="m",
            tokenizer=self.tokenizer,
            model_worker=self.worker,
            reasoning_parser_name=self.config.runtime.reasoning_parser,
        )
        # As MAX's server does: a grammar waits for the end of thinking.
        _apply_thinking_region(self.tokenizer, self.config.runtime.reasoning_parser)
        app = FastAPI()
        app.include_router(openai_routes.router)
        register_request(app)
        app.state.pipeline = pipeline
        app.state.pipeline_config = self.config
        app.state.settings = Settings()
        app.state.task = PipelineTask.TEXT_GENERATION
        self._app = app

    @property
    def context(self) -> Any:
        return self.worker.context

    @property
    def prompt(self) -> str:
        """The last prompt, with its control tokens."""
        return self.tokenizer.delegate.decode(self.context.tokens.prompt.tolist())

    def ids(self, text: str) -> list[int]:
        """Text with control tokens as ids."""
        return self.tokenizer.delegate.encode(text, add_special_tokens=False)

    def ask(
        self, answer: str = "Hi.", at_a_time: int = 1, **body: Any
    ) -> httpx.Response:
        """Posts a chat request that the model answers with ``answer``."""
        self.worker.tokens = [*self.ids(answer), 2]
        self.worker.at_a_time = at_a_time
        body = {"model": "m", "messages": [{"role": "user", "content": "Q?"}]} | body
        return self.post(json.dumps(body))

    def post(self, body: str) -> httpx.Response:
        """Posts a chat request's text."""

        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as c:
                return await c.post("/v1/chat/completions", content=body)

        return _LOOP.run(post())

    def answer(self, answer: str, **body: Any) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        response = self.ask(answer, **body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    def streamed(self, answer: str, **body: Any) -> dict[str, Any]:
        """The same, put together from a stream as a client does it."""
        response = self.ask(answer, stream=True, **body)
        assert response.status_code == 200, response.text
        message: dict[str, Any] = {"content": "", "reasoning": "", "tool_calls": []}
        finish = None
        for line in response.text.splitlines():
            if not line.startswith("data:") or "[DONE]" in line:
                continue
            (choice,) = json.loads(line.removeprefix("data:"))["choices"]
            delta, finish = choice["delta"], choice.get("finish_reason") or finish
            message["content"] += delta.get("content") or ""
            message["reasoning"] += delta.get("reasoning") or ""
            for part in delta.get("tool_calls") or []:
                if part["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append({"id": part["id"], "function": {}})
                function = message["tool_calls"][part["index"]]["function"]
                for key, text in part["function"].items():
                    function[key] = function.get(key, "") + (text or "")
        return {"message": message, "finish_reason": finish}
