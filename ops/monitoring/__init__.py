"""Metrics, verdicts on health, alert rules, dashboards and runbooks."""
