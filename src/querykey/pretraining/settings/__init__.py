"""What can be set for pretraining, and how what is left open is decided."""
