"""The embedded worlds: small, fully known sources of scenes, captions and oracles for the tiny checkpoints."""
