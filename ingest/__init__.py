"""Workers that bring images into a stream: sources, decoding, destinations."""
