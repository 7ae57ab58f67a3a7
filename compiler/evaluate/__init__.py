"""How good a model is: the parts behind drawplate.evaluation."""
