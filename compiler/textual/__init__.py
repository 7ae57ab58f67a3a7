"""The textual IR's parts; `drawplate.text` is the door."""
