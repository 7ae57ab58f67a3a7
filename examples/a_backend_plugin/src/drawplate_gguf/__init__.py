"""GGUF out of drawplate: integers that were chosen once, by the reference quantiser, stored as they are."""
