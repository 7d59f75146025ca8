"""The demo: learn from drawn pictures, judge the clusters, show them."""
