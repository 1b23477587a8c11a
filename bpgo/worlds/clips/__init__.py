"""The world of clips: videos of one coloured shape in motion, nine frames long."""
