"""Run files, the check of a settings class that it is handed, and the state of PyTorch for a computation."""
