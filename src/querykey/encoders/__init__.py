"""What turns items into rows: frozen models and the FC layer on top."""
