"""A digest of the code that a run's numbers depend on, which every record of the study carries."""

import ast
import hashlib
from pathlib import Path

from bpgo.records import CHECKOUT

# Parts of the package that change no number of a run.
WITHOUT_EFFECT = {
    "__main__.py",
    "analysis",
    "bench.py",
    "guards.py",
    "preflight",
    "pretrain",  # the checkpoints that it makes are in the digest
    "records.py",
    "settings.py",
}
SHIPPED_PRESETS = ("-tiny", "-digits")  # the presets that the study runs end like this


def code_digest(root: Path = CHECKOUT) -> str:
    """A digest of the code without comments and docstrings, of the study's presets and checkpoints.

    root: the folder that contains bpgo/ and reproduce/.
    """
    digest = hashlib.sha256()
    files = [path for path in sorted((root / "bpgo").rglob("*")) if _counts(path, root / "bpgo")]
    for path in [*files, root / "reproduce" / "study_trainer.py"]:
        if path.suffix == ".py":
            digest.update(_without_docstrings(path.read_text(encoding="utf-8")).encode())
        elif path.suffix in (".safetensors", ".jsonl", ".yaml"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _counts(path: Path, package: Path) -> bool:
    parts = path.relative_to(package).parts
    if not path.is_file():
        return False
    if parts[0] == "presets":
        return path.stem.endswith(SHIPPED_PRESETS)
    if parts[:2] == ("analysis", "statistics"):  # the rule `ceiling` trains with them
        return True
    return not WITHOUT_EFFECT & set(parts)


def _without_docstrings(source: str) -> str:
    """A dump of the syntax tree, which has no comments, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [part for part in node.body if not _is_docstring(part)]
    return ast.dump(tree)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
