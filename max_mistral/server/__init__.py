"""A request from the client to the model: its fields, its limits, MAX's routes."""
