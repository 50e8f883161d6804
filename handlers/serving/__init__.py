"""The way of a batch through a handler, failures kept apart, and its metrics."""
