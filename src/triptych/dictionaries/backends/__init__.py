"""How a training step is computed: by torch on any device, or by kernels on a CPU."""
