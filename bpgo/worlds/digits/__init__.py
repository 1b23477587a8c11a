"""The world of digits: images of real handwriting, with the ambiguity of everyday language."""
