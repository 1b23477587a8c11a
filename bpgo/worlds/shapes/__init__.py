"""The embedded world: scenes of shapes, captions of controlled ambiguity, an exact oracle, and the training of the
tiny checkpoints. A client of the package: in `bpgo` only the command line, `digits` and `analysis.ambiguity` import it."""
