"""Learning the rotations of a plan: from activations alone, layer by layer, or end to end."""
