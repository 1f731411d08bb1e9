"""From the tensors of a checkpoint to the weights of the graph."""
