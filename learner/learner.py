"""SwAV: one update reads like the paper's pseudo-code.

n views   A assigned views, the first of them   B samples of this rank   N samples over all ranks   H heads
K prototypes   D embedding size   F features of the encoder
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learner import checkpoint_state
from learner.augment import Views
from learner.checkpoint_state import digest
from learner.collective import Deal, SingleProcess, counts_of_ranks
from learner.config import LearnerConfig
from learner.dead_prototypes import Reseeder
from learner.drift import DriftMonitor
from learner.gradients import BUCKET_BYTES, GradientSums
from learner.health import UsageWindow, corrected_agreement, corrected_perplexity, dead_prototypes
from learner.model import SwavModel, copy_all, encoder_tensors, head_tensors, load_weights, numbered
from learner.network import Network, PhaseTimer
from learner.objectives.swav import BatchGradient, Swav
from learner.optim import Updater
from learner.patch_branch import PatchBranchFit
from learner.report import HealthReport, Snapshot, StepReport, require_finite
from learner.step_stats import StepStats, StepTensors, brought_up_to_date, health_report, judge, measure
from learner.weight_average import WeightAverage


class Learner:
    """SwAV over a stream of batches. One object per rank; all methods from one thread.

    A run is a function of config, seed and batches: the same on CPU to the bit with the same number of
    threads, and the same function for any number of ranks. Only `step` and the methods that load or
    estimate change it.

    Args:
        config: all settings.
        seed: of the first weights.
        device: where it runs.
        precision: float32, bfloat16 (activations of encoder and head; prototypes, scores, codes and loss stay
            float32) or float64.
        total_samples: length of the run if it is known; a cosine without `schedule_samples` ends there.
        clock: seconds that only grow; asked between the phases of a step.
        deal: the ranks, and which of them has which lane; None = one rank with all.
        bucket_bytes: size of the pieces in which gradients are summed over ranks.

    Raises:
        ValueError: settings that do not go together.

    Source: Caron et al. 2020, arXiv:2006.09882, sec. 3 and A.1.
    """

    def __init__(
        self,
        config: LearnerConfig,
        *,
        seed: int,
        device: torch.device,
        precision: str,
        total_samples: int | None,
        clock: Callable[[], float],
        deal: Deal | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.config = config
        self.samples = 0
        """Distinct arrivals used so far, over all ranks."""
        self.updates = 0
        """Optimizer steps done so far."""
        self._clock = clock
        self._deal = Deal(SingleProcess()) if deal is None else deal
        self._group = self._deal.ranks
        self._network = Network(config, seed=seed, device=device, precision=precision, deal=self._deal)
        self._model = self._network.model
        self._updater = Updater(config.optim, self._model.parameters(), total_samples)
        self._swav = Swav(config.swav, dim=config.model.projection_dim, group=self._group)
        sums = GradientSums(self._model.parameters(), self._group, bucket_bytes=bucket_bytes)
        self._gradient = BatchGradient(self._network, self._swav, sums, assigned=config.swav.assign_views)
        self._usage = [UsageWindow(k, config.health.usage_window_samples) for k in config.swav.prototypes]
        self._generations = [torch.zeros(k, dtype=torch.int64) for k in config.swav.prototypes]
        self._reseeder = Reseeder(
            config.reseed,
            prototypes=config.swav.prototypes,
            seed=seed,
            freeze_samples=config.swav.freeze_samples,
            twin_cosine=config.health.twin_cosine,
            group=self._group,
        )
        self._health: HealthReport | None = None
        self._measured: StepStats | None = None  # the latest arriving batch, since this object was made
        self._branch_fit = self._new_branch_fit()
        decay = config.optim.average_decay
        self._average = WeightAverage(self._network, decay) if decay > 0 else None
        self._watch = DriftMonitor(self._network, self._deal, config.swav.prototypes[0])

    def step(self, views: Views, *, accumulate: int = 1, fresh: bool = True) -> StepReport:
        """One update from one batch; with several ranks all call it together, each with its own samples.

        Args:
            views: crops of this rank's samples, at least one.
            accumulate: parts that the batch goes through the network in, one after the other. Codes are still
                those of the whole batch, at the price of a first pass without gradients. Batch norm must see
                whole groups: `model.bn_groups` has to be a multiple of ranks x accumulate.
            fresh: these samples are arrivals; False when they have been counted before. Such an update goes
                into the queue, as any, but neither into `samples`, which all schedules follow, nor into the
                usage window, which tells of the latest distinct samples.

        Raises:
            NonFinite: loss or gradient; weights, statistics, queue and counters are as before, on every rank.
            ValueError: views that do not fit the settings.
        """
        timer = PhaseTimer(self._clock)
        self._check(views)
        lane_B = views.lanes(self._deal)
        parts = self._network.parts(lane_B, accumulate)
        counts = counts_of_ranks(self._group, len(lane_B))
        frozen = self._swav.frozen(self.samples)
        self._model.train()
        self._updater.clear()
        with self._network.statistics_kept():
            usage_H = [window.counts_K for window in self._usage]
            outcome = self._gradient.of(
                views, lane_B, parts, counts=counts, samples=self.samples, usage_H=usage_H, timer=timer
            )
            gradient_norm = self._updater.gradient_norm()
            timer.lap("backward")
            measured = measure(outcome, gradient_norm, self.config.swav, self._group)
            require_finite(self.updates, loss=measured.loss, gradient=measured.gradient_norm)
            timer.lap("health")
        rate = self._updater.apply(self.samples, gradient_norm)
        if not frozen:
            self._model.normalise_prototypes()
        self._network.commit_statistics()
        if self._average is not None:
            self._average.update()
        timer.lap("optim")
        self._swav.remember(outcome.z_ABD, lane_B, samples=self.samples, total=sum(counts))
        if self._branch_fit is not None:
            self._branch_fit.observe(views, lane_B, counts, fresh=fresh)
            timer.lap("branch")
        if fresh:
            for window, assigned_N in zip(self._usage, measured.assigned_HN, strict=True):
                window.push(assigned_N)
        self.updates += 1
        self.samples += sum(counts) if fresh else 0
        reseeded = self._reseed(outcome, measured) if fresh else 0
        self._measured = measured if fresh else self._measured
        due = self._health is None or (fresh and self._interval_ended(sum(counts)))
        if due:
            self._health = self._look(views, outcome, measured)
        timer.lap("health")
        return self._report(measured, rate, due, timer, reseeded)

    def _look(self, views: Views, outcome: StepTensors, measured: StepStats) -> HealthReport:
        """The dearer figures of a step; when they are good the drift of the stream is seen from here on."""
        ages = self._swav.queue.ages(self.samples) if self._swav.queue.full else None
        watched = self._watch.observe(
            views,
            tuple(outcome.counts),
            samples=self.samples,
            queue_age=None if ages is None else ages[1],
            prototypes_KD=outcome.prototypes_H[0],
        )
        report = health_report(
            outcome,
            measured,
            self.config.health,
            self._group,
            samples=self.samples,
            usage=self._usage[0],
            queue_ages=ages,
            watched=watched,
        )
        if judge(report)["verdict"] == "healthy":
            self._watch.refresh_reference(self.samples, every=self.config.health.reference_samples)
        return report

    def _reseed(self, outcome: StepTensors, measured: StepStats) -> int:
        """Move prototypes that no arrival came to for long; returns how many."""
        self._reseeder.note(measured.assigned_HN, samples=self.samples)
        if not self._reseeder.due(samples=self.samples, batch=sum(outcome.counts)):
            return 0
        before = [generation_K.clone() for generation_K in self._generations]
        moved = self._reseeder.reseed(
            outcome,
            list(self._model.prototypes),
            [window.counts_K for window in self._usage],
            self._generations,
            self._updater.optimizer,
            samples=self.samples,
        )
        if moved and self._average is not None:
            for head, (old_K, new_K) in enumerate(zip(before, self._generations, strict=True)):
                self._average.take_prototypes(head, (old_K != new_K).nonzero().squeeze(1))
        return moved

    def _check(self, views: Views) -> None:
        assigned = self.config.swav.assign_views
        if len(views.crops[0]) < assigned or len(views.uniforms) < 2:
            raise ValueError(
                f"swav.assign_views = {assigned} needs as many crops of the first kind and two views, "
                f"got {[len(crops) for crops in views.crops]}"
            )
        if self._branch_fit is not None and len(views.crops[0]) < 2:
            raise ValueError("model.branch_centres needs two crops of the first kind: crops.0.count = 2")

    def _interval_ended(self, total: int) -> bool:
        interval = self.config.health.interval_samples
        return self.samples // interval != (self.samples - total) // interval

    def _report(
        self, measured: StepStats, rate: float, due: bool, timer: PhaseTimer, reseeded: int
    ) -> StepReport:
        usage = self._usage[0]
        return StepReport(
            loss=measured.loss,
            loss_over_ln_k=measured.loss_over_ln_k,
            learning_rate=rate,
            gradient_norm=measured.gradient_norm,
            samples=self.samples,
            updates=self.updates,
            queue_fill=self._swav.queue.fill,
            usage_perplexity=corrected_perplexity(usage.counts_K),
            usage_window_fill=min(1.0, len(usage) / usage.samples),
            dead_prototypes=dead_prototypes(usage.counts_K),
            sinkhorn_residual=measured.sinkhorn_residual,
            code_entropy_nats=measured.code_entropy_nats,
            prediction_entropy_nats=measured.prediction_entropy_nats,
            view_agreement=corrected_agreement(measured.view_agreement, usage.shares()),
            feature_std_ratio=measured.feature_std_ratio,
            assigned_B=measured.assigned_B,
            score_B=measured.score_B,
            assigned_N=measured.assigned_HN[0],
            seconds=timer.seconds,
            health=self._health if due else None,
            reseeded=reseeded,
        )

    def usage(self) -> Tensor:
        """[K] float32 on the CPU: share of each prototype in the usage window, first head."""
        return self._usage[0].shares()

    def health(self) -> HealthReport | None:
        """The latest report; None before the first step."""
        return self._health

    def features(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """[N, F] float32 on the CPU: pooled encoder output before the head, evaluation mode; no collective.

        With a patch branch its numbers follow, see `SwavModel.features`. With `optim.average_decay` the
        averaged weights look, here, in `scores` and in `snapshot`.

        Args:
            images: uint8 [N, 3, H, W], or N images [3, H, W] of one size.
        """
        return self._network.features(images, self._shown)

    def scores(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """[N, K] float32 on the CPU: raw cosines with the first head; the arg-max is the cluster.

        Args:
            images: as for `features`.
        """
        return self._network.scores(images, self._shown)

    def estimate_statistics(self, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
        """Replace the running batch-norm statistics by their average over these uint8 images."""
        self._network.estimate_statistics(batches, self._shown)

    @property
    def _shown(self) -> SwavModel:
        """The model that others use."""
        return self._model if self._average is None else self._average.model

    def snapshot(self) -> Snapshot:
        """Copies on the CPU of what others use; not a collective, the same on every rank."""
        encoder = {
            name: checkpoint_state.copied(tensor) for name, tensor in encoder_tensors(self._shown).items()
        }
        weights = {
            name: checkpoint_state.copied(tensor) for name, tensor in head_tensors(self._shown).items()
        }
        tensors = dict(weights)
        for head, (window, generation_K) in enumerate(zip(self._usage, self._generations, strict=True)):
            tensors[numbered("usage", head)] = window.shares()
            tensors[numbered("generation", head)] = generation_K.clone()
        return Snapshot(
            encoder=encoder,
            tensors=tensors,
            digest=digest({f"encoder.{name}": tensor for name, tensor in encoder.items()} | weights),
            encoder_digest=digest(encoder),
            health=self._health_now(),
        )

    def _health_now(self) -> dict[str, Any]:
        """The verdict of this moment: the latest report may be long ago. Changes nothing, no collective.

        Right after a resume it is that of the report: what the last step was like is not part of the state.
        """
        report, latest = self._health, self._measured
        if report is None:
            return {}
        if latest is None or report.samples == self.samples:
            return judge(report) | {"looked_samples": report.samples}
        priors_H = self._swav.priors([window.counts_K for window in self._usage], self._network.device)
        now = brought_up_to_date(
            report,
            latest,
            self.config.health,
            samples=self.samples,
            usage=self._usage[0],
            prototypes_KD=self._model.prototypes[0].detach(),
            prior_K=priors_H[0],
        )
        return judge(now) | {"looked_samples": report.samples}

    def load_weights(self, encoder: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Start from the weights of a snapshot (its `encoder` and `tensors`); not a resume.

        Raises:
            ValueError: names or shapes differ; nothing has been changed then.
        """
        load_weights(self._model, encoder, tensors)
        self._branch_fit = self._new_branch_fit()
        if self._average is not None:
            self._average.restart()

    def _new_branch_fit(self) -> PatchBranchFit | None:
        branch, config = self._model.branch, self.config
        if branch is None:
            return None
        return PatchBranchFit(branch, config.model, config.augment, self._group)

    def state_dict(self, *, send_only: bool = False) -> dict[str, Any]:
        """Everything that the next steps depend on, of all ranks; every rank calls it.

        Args:
            send_only: only send this rank's part to the ranks that want the whole; no weight is copied.

        Returns:
            {"version": int, "tensors": {name: copy on the CPU}, "values": {name: JSON value}}; empty with
            `send_only`.
        """
        if send_only:
            self._swav.queue.hand_over(self._group, self._network.device)
            if self._branch_fit is not None:
                self._branch_fit.hand_over()
            return {}
        queue = self._swav.queue.state_dict(self._group, self._network.device)
        tensors = checkpoint_state.under("model", self._model.state_dict())
        tensors |= checkpoint_state.under(
            "optim", checkpoint_state.optimizer_tensors(self._updater.optimizer, self._model)
        )
        tensors |= checkpoint_state.under("queue", queue["tensors"])
        reseed = self._reseeder.state_dict()
        tensors |= checkpoint_state.under("reseed", reseed["tensors"])
        values: dict[str, Any] = {
            "samples": self.samples,
            "updates": self.updates,
            "queue": queue["values"],
            "usage": [],
            "health": checkpoint_state.report_to_json(self._health),
            "reseed": reseed["values"],
        }
        if self._branch_fit is not None:
            branch = self._branch_fit.state_dict()
            tensors |= checkpoint_state.under("branch_fit", branch["tensors"])
            values["branch_fit"] = branch["values"]
        if self._average is not None:
            average = self._average.state_dict()
            tensors |= {f"average.{name}": tensor for name, tensor in average["tensors"].items()}
            values["average"] = average["values"]
        watch = self._watch.state_dict()
        tensors |= checkpoint_state.under("watch", watch["tensors"])
        values["watch"] = watch["values"]
        for head, (window, generation_K) in enumerate(zip(self._usage, self._generations, strict=True)):
            usage = window.state_dict()
            tensors |= checkpoint_state.under(f"usage.{head}", usage["tensors"])
            values["usage"].append(usage["values"])
            tensors[f"generation.{head}"] = generation_K.clone()
        return {"version": checkpoint_state.VERSION, "tensors": tensors, "values": values}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state, of any number of ranks.

        Raises:
            ValueError: another version, network, number of prototypes or optimiser; what was loaded until
                then stays, so the learner is not to be used further.
        """
        if saved.get("version") != checkpoint_state.VERSION:
            raise ValueError(
                f"learner state has version {saved.get('version')!r}; "
                f"this program reads {checkpoint_state.VERSION}"
            )
        tensors, values = saved["tensors"], saved["values"]
        copy_all(self._model.state_dict(), checkpoint_state.below("model", tensors))
        checkpoint_state.load_optimizer(
            self._updater.optimizer, self._model, checkpoint_state.below("optim", tensors)
        )
        queue = {"tensors": checkpoint_state.below("queue", tensors), "values": values["queue"]}
        self._swav.queue.load_state_dict(queue, self._deal, self._network.device)
        for head, window in enumerate(self._usage):
            usage = {
                "tensors": checkpoint_state.below(f"usage.{head}", tensors),
                "values": values["usage"][head],
            }
            window.load_state_dict(usage)
            self._generations[head].copy_(tensors[f"generation.{head}"])
        self.samples, self.updates = values["samples"], values["updates"]
        ages = {"tensors": checkpoint_state.below("reseed", tensors), "values": values.get("reseed", {})}
        self._reseeder.load_state_dict(ages, samples=self.samples)
        if self._branch_fit is not None:
            self._branch_fit.load_state_dict(
                {"tensors": checkpoint_state.below("branch_fit", tensors), "values": values["branch_fit"]}
            )
        self._load_average(tensors, values)
        self._health, self._measured = checkpoint_state.report_from_json(values["health"]), None
        self._watch.load_state_dict(
            {"tensors": checkpoint_state.below("watch", tensors), "values": values["watch"]}
        )

    def _load_average(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on with the average of a state; where it was off there, begin from its weights."""
        if self._average is None:
            return
        if "average" not in values:
            self._average.restart()
            return
        saved = checkpoint_state.below("average", tensors)
        self._average.load_state_dict({"tensors": saved, "values": values["average"]})
