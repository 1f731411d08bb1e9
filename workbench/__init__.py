"""What tests, benchmarks and scripts share: tiny checkpoints and ways to run them."""
