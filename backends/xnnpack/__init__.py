"""ExecuTorch's XNNPACK delegate: a .pte for phones and desktops, written through ExecuTorch's own serialiser."""
