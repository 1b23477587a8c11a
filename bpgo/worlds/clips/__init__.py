"""The world of clips: one coloured shape in motion, nine frames long."""
