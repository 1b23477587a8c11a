"""What the notebooks show and count: the style of every figure is in `plots`."""
