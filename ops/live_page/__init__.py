"""The page that a learner serves while it learns."""
