"""The world of drawings: one coloured shape, or two shapes and their relation."""
