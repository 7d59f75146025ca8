"""Encoded images to tensors: decoding and crops."""
