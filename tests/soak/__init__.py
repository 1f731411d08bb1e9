"""A server under load and under fault: what it may not do is lose an answer."""
