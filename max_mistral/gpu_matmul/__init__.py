"""Whether MAX's matmul is right on this GPU, and what runs if it is not."""
