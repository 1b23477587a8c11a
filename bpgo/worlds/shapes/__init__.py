"""The world of drawings: one coloured shape, or two and how they lie to each other."""
