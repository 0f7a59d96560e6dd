"""Reads run files and validates the settings class that it is handed; it knows no setting itself."""
