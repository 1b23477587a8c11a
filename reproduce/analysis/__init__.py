"""What only the study reads: its evidence and claims, and the paper's published numbers."""
