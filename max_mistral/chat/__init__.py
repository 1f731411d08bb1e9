"""Chat: tool calls, thinking and JSON, as Mistral's own API has them."""

from .reasoning import NAME as REASONING_PARSER
from .tokens import ChatTokens
from .tool_parser import NAME as TOOL_PARSER

__all__ = ["REASONING_PARSER", "TOOL_PARSER", "ChatTokens"]
