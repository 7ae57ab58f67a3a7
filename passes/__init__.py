"""The built-in passes: one pass, one file, and the file's name is the pass's name."""

# Found from the repository root this folder is also importable as `passes`, which would make a second
# copy of every class in it: isinstance and registration would then fail in ways that explain nothing.
if __name__ != "drawplate.passes":
    raise ImportError(f"this package is called drawplate.passes; it was imported as {__name__}")
