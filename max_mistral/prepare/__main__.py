"""``python -m max_mistral.prepare``."""

from . import main

main()
