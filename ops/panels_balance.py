"""The first dashboard: is it alive, is it learning, is it balanced."""

from learner.measure import LIMITS
from ops.grafana import (
    GREEN,
    RED,
    YELLOW,
    Dashboard,
    Panel,
    Row,
    lines,
    metric,
    number,
    query,
    rate,
)
from ops.verdicts import (
    DEAD_MANY,
    DEAD_SOME,
    LOSS_SLOW,
    LOSS_STUCK,
    PERPLEXITY_GOOD,
    PERPLEXITY_LOW,
    RESIDUAL_MUCH,
    RESIDUAL_SOME,
    SPREAD_LOW,
    SPREAD_NONE,
    TWINS_MANY,
    TWINS_SOME,
)

NO_QUEUE = "runs without a queue have none; with one it is told once the queue is full"
NOT_YET = "told once the run has been healthy for some reports"
NARROW = "needs an embedding of 32 dimensions or more, and a batch of more samples than that"
NOT_PUBLISHED = "nothing has been published yet"


def _share(name: str) -> str:
    return f"{metric(name)} / {metric('prototypes')}"


GLANCE = Row(
    title="At a glance",
    panels=(
        number("Images a second", f"sum by (instance) ({rate('samples_total')})",
               "Samples that updates were made from. 0 while it waits for records.",
               steps=[(0.001, GREEN)], base=RED),
        number("Loss of ln K", metric("loss_over_ln_k_ratio"),
               "1 = has learned nothing; falls as views predict each other.",
               unit="percentunit", steps=[(LOSS_SLOW, YELLOW), (LOSS_STUCK, RED)]),
        number("Prototypes in use", metric("usage_perplexity_ratio"),
               "Perplexity of usage by raw arg-max, of K. Codes are balanced by construction, so they are "
               "not "
               "what is looked at.",
               unit="percentunit", steps=[(PERPLEXITY_LOW, YELLOW), (PERPLEXITY_GOOD, GREEN)], base=RED),
        number("Dead", _share("dead_prototypes"), "Prototypes that get almost no images, of K.",
               unit="percentunit", steps=[(DEAD_SOME, YELLOW), (DEAD_MANY, RED)]),
        number("Twins", _share("prototype_twins"),
               "Prototypes that are nearly the same vector as another, of K: partial collapse.",
               unit="percentunit", steps=[(TWINS_SOME, YELLOW), (TWINS_MANY, RED)]),
        number("Feature spread", metric("feature_std_ratio"), "1 = all over the sphere, 0 = collapsed.",
               unit="percentunit", steps=[(SPREAD_NONE, YELLOW), (SPREAD_LOW, GREEN)], base=RED),
        number("Effective rank", metric("embedding_effective_rank"),
               "Directions that the features use; compare within one run only."),
        number("Snapshot age", f"time() - {metric('last_publish_timestamp_seconds')}",
               "Since the last snapshot was published.", unit="s", may_be_empty=NOT_PUBLISHED),
    ),
)  # fmt: skip

USAGE = Row(
    title="Balance",
    panels=(
        Panel(
            title="Usage of prototypes", kind="heatmap", width=16, height=10,
            queries=(query(f"sum by (le) ({metric('prototype_usage_ratio_bucket')})"),),
            help="How many prototypes have which usage, in even shares: 1 is even, the lowest row is unused. "
                 "A "
                 "healthy run is a bright band around 1; a bright lowest row are dead prototypes.",
        ),
        lines("Loss", query(metric("loss"), "loss"), query(f"ln({metric('prototypes')})", "ln K"),
              help="Swapped prediction, nats. At ln K nothing is learned.", low=0),
        lines("Perplexity and inequality", query(metric("usage_perplexity_ratio"), "perplexity of K"),
              query(metric("usage_gini_ratio"), "Gini"),
              query(metric("usage_window_fill_ratio"), "usage window"),
              help="Usage figures mean little before the usage window is full.",
              unit="percentunit", low=0, high=1),
        Panel(
            title="Largest shares", kind="bargauge", width=4, height=7, unit="percentunit",
            queries=(query(f"max by (rank) ({metric('prototype_usage_top_ratio')})", "{{rank}}"),),
            help="The ten most used prototypes, by rank. Which they are is on the live page.",
            clusters=True,
        ),
        Panel(
            title="Smallest shares", kind="bargauge", width=4, height=7, unit="percentunit",
            queries=(query(f"min by (rank) ({metric('prototype_usage_bottom_ratio')})", "{{rank}}"),),
            help="The ten least used prototypes, by rank.", clusters=True,
        ),
        lines("Usage by group", query(f"avg by (group) ({metric('group_usage_ratio')})", "{{group}}"),
              help="Shares of fixed groups of prototypes; even bands are balance, a shift is drift.",
              unit="percentunit", stacked=True, low=0, high=1),
        lines("Divergence from the prior", query(metric("usage_kl_to_prior_nats")),
              help="0 = usage is as wanted; by chance (K - 1) / (2 x samples in the window).", low=0),
    ),
)  # fmt: skip

COLLAPSE = Row(
    title="Collapse",
    panels=(
        lines("Dead and twins", query(_share("dead_prototypes"), "dead"), query(_share("prototype_twins"),
              "twins"),
              help="Of K. Twins are the partial collapse that usage cannot show.", unit="percentunit", low=0,
              steps=[(TWINS_MANY, YELLOW), (DEAD_MANY, RED)]),
        lines("Re-seeded", query(f"increase({metric('prototypes_reseeded_total')}[5m])"),
              help="Prototypes that began anew because no sample came to them, in five minutes; 0 unless "
                   "reseed.after_samples is set.", low=0),
        lines("Nearest other prototype", query(metric("prototype_nn_cosine"), "{{stat}}"),
              help="Cosine of a prototype with its nearest other one. Random directions have about 0.3; near "
                   "1 "
                   "are twins.", high=1),
        lines("Feature spread", query(metric("feature_std_ratio"), "spread"),
              help="Below the line the encoder has collapsed.", unit="percentunit", low=0,
              steps=[(LIMITS["feature_std_ratio"][0], RED)]),
        lines("Effective ranks", query(metric("embedding_effective_rank"), "RankMe"),
              query(metric("embedding_lidar_rank"), "LiDAR", may_be_empty="needs two assigned views"),
              help="Directions that the features use, and that tell images apart.", low=0),
        lines("Spectrum", query(metric("embedding_alpha_req"), "alpha-ReQ", may_be_empty=NARROW),
              query(metric("uniformity"), "uniformity"), query(metric("alignment"), "alignment"),
              help="Decay of the spectrum (about 1 is good); evenness of features; distance of two views."),
        lines("Codes and predictions", query(metric("code_entropy_nats"), "codes"),
              query(metric("prediction_entropy_nats"), "predictions"),
              query(f"ln({metric('prototypes')})", "ln K"),
              help="Entropies, nats. Codes at ln K say nothing.", low=0),
        lines("Agreement of views", query(metric("view_agreement_ratio")),
              help="Two views of an image on one prototype, corrected for chance: 0 also under collapse.",
              unit="percentunit", high=1),
        lines("Sinkhorn residual", query(metric("sinkhorn_marginal_residual")),
              help="Mass on the wrong prototypes after the last round; rises before steps fail.",
              low=0, steps=[(RESIDUAL_SOME, YELLOW), (RESIDUAL_MUCH, RED)]),
        lines("Queue", query(metric("queue_fill_ratio"), "full"),
              query(metric("queue_staleness_cosine"), "features against today's", may_be_empty=NO_QUEUE),
              help="A queue is used once full; features much older than the network mislead the codes.",
              unit="percentunit", high=1),
        lines("Age of the queue", query(metric("queue_age_samples"), "{{stat}}", may_be_empty=NO_QUEUE),
              help="Samples seen since a queued feature was made.", low=0),
        lines("Movement of prototypes", query(metric("prototype_shift_cosine"), "{{stat}}",
              may_be_empty=NOT_YET),
              help="1 - cosine of each prototype with itself in the frozen copy.", low=0),
    ),
)  # fmt: skip

BALANCE = Dashboard(
    name="balance",
    title="Prototype balance",
    help="Is it alive, is it learning, is it balanced.",
    rows=(GLANCE, USAGE, COLLAPSE),
)
