"""The numbers of a step that people are shown, by name."""

from collections.abc import Mapping

from learner.report import HealthReport, StepReport

STEP_FIELDS: Mapping[str, str] = {
    "samples": "samples",
    "updates": "updates",
    "loss": "loss",
    "loss_over_ln_k": "loss_over_ln_k",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "queue_fill": "queue_fill",
    "usage_perplexity": "usage_perplexity",
    "dead_prototypes": "dead_prototypes",
    "sinkhorn_residual": "sinkhorn_residual",
    "feature_std_ratio": "feature_std",
    "view_agreement": "view_agreement",
    "code_entropy_nats": "code_entropy",
    "prediction_entropy_nats": "prediction_entropy",
}
"""Name shown: field of StepReport."""


def figures_of(report: StepReport, health: HealthReport | None) -> dict[str, float | None]:
    """The figures of a step.

    Args:
        report: of the step.
        health: the latest health report, which may be older; None when there was none.
    """
    figures: dict[str, float | None] = {name: getattr(report, field) for name, field in STEP_FIELDS.items()}
    if report.loss_over_ln_k > 0:
        figures["ln_k"] = report.loss / report.loss_over_ln_k
    if health is not None:
        figures["prototype_twins"] = health.prototype_twins
        figures["effective_rank"] = health.effective_rank
        figures["usage_window_fill"] = min(1.0, report.usage_samples / health.usage_window_samples)
    return figures
