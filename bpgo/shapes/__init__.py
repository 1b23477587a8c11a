"""The embedded world: scenes of shapes, captions of controlled ambiguity, an exact oracle, and the training of the
tiny checkpoints. A client of the package: nothing in `bpgo` outside this folder and the command line imports it."""
