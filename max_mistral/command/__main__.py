"""``python -m max_mistral.command``: ``max-mistral``, where it is not installed."""

from . import main

main()
