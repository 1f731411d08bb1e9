"""What ``max.nn`` lacks."""
