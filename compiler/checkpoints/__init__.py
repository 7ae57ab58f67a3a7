"""What formats that store weights by name share, in and out: the architecture that a file leaves to its loader, what of
a program is that architecture, files of tensors, the folder around them."""
