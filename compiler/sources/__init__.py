"""Where models come from: each file turns one kind of source into a Source that capture can trace."""
