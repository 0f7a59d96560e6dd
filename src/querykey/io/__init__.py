"""Files: atomic output, records, images, and the folders of studies."""
