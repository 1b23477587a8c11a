"""What a run needs before it starts: files, memory, disk and time. No model is loaded."""
