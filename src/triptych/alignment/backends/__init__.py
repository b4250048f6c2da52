"""How a model is run over packed groups with gradients: the fused CPU path, and any model through its own forward."""
