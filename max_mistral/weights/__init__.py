"""The tensors of a checkpoint: where they are, what they are called, packing."""
