"""What only the study reads: its claims, evidence, failure modes and the paper's published numbers."""
