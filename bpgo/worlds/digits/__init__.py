"""A second embedded world, of real pictures: handwritten digits, whose ambiguity is natural."""
