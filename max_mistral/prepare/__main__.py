"""``python -m max_mistral.prepare``."""

from .command_line import main

main()
