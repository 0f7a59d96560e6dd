"""Files: written whole or not at all, records, folders of runs and studies."""
