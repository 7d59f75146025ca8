"""What a recipe comes to on a machine and a stream: settings, length, memory, and what does not fit."""

from dataclasses import asdict, dataclass
from typing import Any

import tomli_w

from ops.config import binding, recipes
from ops.config.auto import Choice
from ops.config.checks import Machine, Stream, gib, uses_cuda, warnings
from ops.config.load import build
from ops.config.memory import Memory, memory_of
from ops.config.mixing import Mixing, look_at_batch
from ops.config.run_length import run_samples
from ops.config.schema import RunConfig
from ops.errors import ConfigError
from stream.kafka_topic.address import is_topic
from stream.secrets import safe_url
from stream.shards.manifest import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A recipe with everything that `recipes show` says of it."""

    recipe: recipes.Recipe
    config: RunConfig
    """With what was changed on the command line."""
    ranks: int
    samples: int
    """Of the whole run; 0 = as many as the stream has."""
    memory: Memory | None
    """Of one rank; None with more ranks than lanes."""
    cuda: bool
    """The network would be on a CUDA device."""
    stream: Stream | None
    mixing: Mixing | None
    """What the first batch would hold of the stream; None without one."""
    warnings: tuple[str, ...]
    choice: Choice | None = None
    """Why its settings are these; None where they are those of a file."""

    @property
    def steps(self) -> int:
        """Global batches."""
        return self.samples // self.config.batch

    @property
    def updates(self) -> int:
        """Optimizer steps, replays among them."""
        return self.steps * self.config.replay.updates

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        memory = None
        if self.memory is not None:
            memory = {**asdict(self.memory), "device": self.memory.device, "host": self.memory.host}
        return {
            "name": self.recipe.name,
            "recipe": binding.plain(self.recipe.about),
            "samples": self.samples,
            "steps": self.steps,
            "updates": self.updates,
            "ranks": self.ranks,
            "memory_bytes": memory,
            "stream": None if self.stream is None else asdict(self.stream),
            "first_batch": None if self.mixing is None else asdict(self.mixing),
            "config": self.config.to_dict(),
            "warnings": list(self.warnings),
            **({} if self.choice is None else self.choice.to_json()),
        }

    def to_toml(self) -> str:
        """A config file, with the rest as comments before it."""
        lines = [f"recipe {self.recipe.name}{self._length()}"]
        lines += [] if self.choice is None else self.choice.lines()
        if self.memory is not None:
            place = "on the device" if self.cuda else "in memory"
            lines.append(
                f"memory of one rank of {self.ranks}, estimated: {gib(self.memory.device)} {place} "
                f"(activations {gib(self.memory.activations)}), {gib(self.memory.host)} beside it"
            )
            lines.append("(tensors only: the program and its libraries take some 0.7 GiB a rank besides)")
            if self.memory.checkpoint_images:
                lines.append(
                    f"each checkpoint holds {self.config.replay.window_samples:,} encoded images for replay, "
                    f"about {gib(self.memory.checkpoint_images)}; {self.config.checkpoint.keep} checkpoints "
                    "are kept"
                )
        if self.mixing is not None:
            lines.append(str(self.mixing))
        lines += [f"warning: {sentence}" for sentence in self.warnings]
        body = {**self.config.to_dict(), "recipe": binding.plain(self.recipe.about)}
        return "".join(f"# {line}\n" for line in lines) + tomli_w.dumps(body)

    def _length(self) -> str:
        if not self.steps:
            return ""
        return f": {self.samples:,} samples, {self.steps:,} steps, {self.updates:,} updates"


def resolve(
    recipe: str | recipes.Recipe,
    assignments: tuple[str, ...] = (),
    *,
    stream: str | None = None,
    ranks: int | None = None,
    machine: Machine | None = None,
    choice: Choice | None = None,
) -> Resolved:
    """Work out what a recipe comes to.

    Args:
        recipe: or its name.
        assignments: `a.b=v`, over it.
        stream: directory or URL of the stream that it would read; None = that of its source's data set.
        ranks: learners; None = one for each CUDA device that the run would use.
        machine: where it would run; None = here.
        choice: why the settings of the recipe are these, where they were chosen.

    Raises:
        ConfigError: no such recipe or setting.
        StreamError: the stream cannot be read.
    """
    if isinstance(recipe, str):
        recipe = recipes.load(recipe)
    config = build(recipe.values, assignments)
    machine = Machine.this() if machine is None else machine
    cuda = uses_cuda(config, machine)
    if ranks is None:
        ranks = max(1, len(machine.device_bytes)) if cuda else 1
    facts = None if stream is None else look(stream)
    image_bytes = 0 if facts is None else facts.image_bytes
    memory = memory_of(config, ranks=ranks, image_bytes=image_bytes) if ranks <= config.lanes else None
    if facts is not None:
        samples = run_samples(config, facts.records) if facts.sealed else 0
    else:
        samples = run_samples(config, recipe.about.images)
    found = warnings(config, base=recipe.config, machine=machine, ranks=ranks, memory=memory, stream=facts)
    return Resolved(
        recipe=recipe,
        config=config,
        ranks=ranks,
        samples=samples,
        memory=memory,
        cuda=cuda,
        stream=facts,
        mixing=None if stream is None else look_at_batch(stream, config),
        warnings=tuple(found),
        choice=choice,
    )


def look(stream: str) -> Stream:
    """What a stream holds now."""
    if is_topic(stream):
        raise ConfigError(
            f"{safe_url(stream)} is a Kafka topic: --stream looks at streams of shards. For a topic set "
            "lanes to its number of partitions; `learn` checks the rest"
        )
    manifest = Manifest.open(stream)
    commits = [manifest.entry(number) for number in range(manifest.floor.first, len(manifest))]
    images = sum(commit.n for commit in commits)
    return Stream(
        records=manifest.records,
        shards=sum(commit.n > 0 for commit in commits),
        sealed=manifest.sealed,
        image_bytes=sum(commit.accounts.bytes or commit.bytes for commit in commits) // max(1, images),
    )
