"""Views of images: what is drawn, from which random numbers, and how pixels are changed."""
