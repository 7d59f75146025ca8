"""WebDataset shards and the manifest that commits them."""
