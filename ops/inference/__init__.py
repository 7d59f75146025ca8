"""A model that was learned, loaded and used on images."""
