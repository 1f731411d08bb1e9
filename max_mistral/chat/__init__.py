"""Chat: tool calls, thinking and JSON, as Mistral's own API has them."""

from .client_messages import contents, read_messages, without_nulls
from .reasoning import NAME as REASONING_PARSER
from .tokens import ChatTokens
from .tool_choice import read_tool_choice
from .tool_parser import NAME as TOOL_PARSER
from .vocabulary import special_tokens

__all__ = [
    "REASONING_PARSER",
    "TOOL_PARSER",
    "ChatTokens",
    "contents",
    "read_messages",
    "read_tool_choice",
    "special_tokens",
    "without_nulls",
]
