"""A PEFT adapter merged into a checkpoint.

``adapter.py`` reads it, ``maths.py`` says what it does to a weight, ``plan.py``
which tensors of the base it does it to; ``safetensors.py`` and ``gguf.py`` write
the result. In memory is one tensor at a time, in float32, beside its adapter;
what the adapter does not touch is copied as it is.
"""
