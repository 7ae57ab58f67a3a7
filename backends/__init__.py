"""The built-in backends, all of one shape: target.py, backend.py, emit.py."""

# Found from the repository root this folder is also importable as `backends`, which would make a second
# copy of every class in it: isinstance and registration would then fail in ways that explain nothing.
if __name__ != "drawplate.backends":
    raise ImportError(f"this package is called drawplate.backends; it was imported as {__name__}")
