"""What travels, and how it is written and read exactly once: records, lanes, shards, topics, batches."""
