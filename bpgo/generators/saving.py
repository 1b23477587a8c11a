"""Pipelines are saved without traces of what they were used for."""

from __future__ import annotations

from pathlib import Path


def save_pipeline(pipeline, folder: Path) -> None:
    """Write a whole pipeline, for `from_pretrained`.

    A tokenizer remembers how it padded and truncated last, and would save that. transformers sets
    both in every call.
    """
    for part in pipeline.components.values():
        backend = getattr(part, "backend_tokenizer", None)
        if backend is not None:
            backend.no_padding()
            backend.no_truncation()
    pipeline.save_pretrained(folder)
