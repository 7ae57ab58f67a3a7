"""Facts about graphs: which weights are what, and which parts repeat. Nothing here changes a program."""
