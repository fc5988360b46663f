"""What a run costs, from the costs of its batch shapes; and the lines that say so."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from seq2seq_jax.data.batching import BatchShape
from seq2seq_jax.recurrence import Plan
from seq2seq_jax.training.costs.collectives import Collective
from seq2seq_jax.training.costs.counts import Footprint, Products, Size
from seq2seq_jax.wording import counted, duration, figures, megabytes


class ShapeCosts(NamedTuple):
    """A batch shape's part in an epoch, and what a step on it costs."""

    shape: BatchShape
    num_batches: int
    source_tokens: int
    """Real ones, in all its batches of the epoch."""
    target_tokens: int
    products: Products
    """Of a step, on each device."""
    footprint: Footprint | None
    compile_seconds: float | None
    """None where it was not compiled."""
    step_seconds: float

    @property
    def positions(self) -> int:
        """Source and target positions of all its batches in the epoch."""
        return self.num_batches * self.shape.positions

    @property
    def padded_share(self) -> float:
        """Padding among them."""
        return 1 - (self.source_tokens + self.target_tokens) / self.positions if self.positions else 0.0


class Meetings(NamedTuple):
    """How devices meet in a step, and how many rounds its loops have."""

    collectives: list[Collective]
    rounds: int

    def lines(self) -> Iterator[str]:
        """Kinds of collectives with their number and bytes, outside of loops and in them."""
        for where, in_loop in (("outside loops", False), ("in loops, a round", True)):
            found = [each for each in self.collectives if each.in_loop == in_loop]
            kinds = [
                f"{counted(len(sizes), kind)}, {megabytes(sum(sizes))} MB"
                for kind in dict.fromkeys(each.kind for each in found)
                if (sizes := [each.bytes for each in found if each.kind == kind])
            ]
            yield f"    {where}: {'; '.join(kinds) or 'none'}"


class Costs(NamedTuple):
    """What a run costs."""

    parts: dict[str, Size]
    """Parameters by part of the model."""
    state: Size
    """Parameters and everything else that is kept from step to step."""
    shapes: tuple[ShapeCosts, ...]
    available: int | None
    """Bytes that a step may use on each device, where that is known."""
    num_steps: int
    num_seeds: int = 1
    """Runs that take every step as one."""
    meetings: Meetings | None = None
    """On devices that are not here: then a step's seconds are an estimate."""

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return sum(shape.num_batches for shape in self.shapes)

    @property
    def padded_share(self) -> float:
        """Padding positions of the epoch over all, source and target."""
        padding = sum(shape.padded_share * shape.positions for shape in self.shapes)
        return padding / sum(shape.positions for shape in self.shapes)

    @property
    def products(self) -> Products:
        """Of a step on each device, mean over the epoch."""
        sums = (sum(shape.num_batches * shape.products[n] for shape in self.shapes) for n in range(2))
        return Products(*(round(total / self.num_batches) for total in sums))

    @property
    def step_seconds(self) -> float:
        """Mean over the epoch."""
        return sum(shape.num_batches * shape.step_seconds for shape in self.shapes) / self.num_batches

    @property
    def target_tokens_per_second(self) -> float:
        """Real target tokens, all devices and seeds."""
        tokens = self.num_seeds * sum(shape.target_tokens for shape in self.shapes)
        return tokens / (self.num_batches * self.step_seconds)


def parameter_lines(parts: Mapping[str, Size], state: Size) -> Iterator[str]:
    """Parameters by part of the model, and with all that the optimizer keeps beside them: a table."""
    yield f"{'Parameters':<20}{'number':>12}{'MB':>9}"
    for name, part in (*parts.items(), ("training state", state)):
        yield f"    {name:<16} {part.count:>11,} {megabytes(part.bytes):>8}"


def step_lines(plan: Plan) -> Iterator[str]:
    """What of a step of the decoder runs in a loop, and what for all steps at once."""
    yield "Decoder's step, with the shapes of its products at one step"
    for stage in plan.stages:
        if stage.products or stage.where in ("loop", "solved"):
            yield from textwrap.wrap(str(stage), 110, initial_indent=" " * 4, subsequent_indent=" " * 8)


def cost_lines(costs: Costs) -> Iterator[str]:
    """Batch shapes with what a step costs, a table, and what that makes for the run."""
    yield (
        f"{'Batch shape':<16}{'batches':>8}{'share':>8}{'padding':>9}{'GFLOP':>8}{'product MB':>12}{'memory MB':>11}"
        f"{'est. ms' if costs.meetings else 'ms a step':>11}{'compile s':>11}"
    )
    for row in costs.shapes:
        name = f"{row.shape.batch}x{row.shape.source}x{row.shape.target}"
        yield _cost_row(name, row, row.num_batches / costs.num_batches, row.footprint, row.compile_seconds)
    largest = max((row.footprint for row in costs.shapes if row.footprint), key=lambda found: found.total, default=None)
    yield _cost_row("epoch", costs, 1.0, largest, sum(row.compile_seconds or 0.0 for row in costs.shapes))
    yield "    GFLOP and MB: operations of a step's matrix products, and their operands and results, on each device"
    if largest:
        room = "" if costs.available is None else f" of {megabytes(costs.available)} MB available"
        yield f"Memory      {megabytes(largest.total)} MB{room} on each device, at the peak of the largest step"
    if costs.meetings:
        yield f"Loops       {costs.meetings.rounds:,} rounds in that step, each of which waits for the one before"
        yield "Collectives of that step, and the bytes of their results on each device"
        yield from costs.meetings.lines()
        yield "Estimate    products at the full speed of the chip or of its memory, and collectives"
        yield "            the latency of loops and launches is not in it: a step takes longer"
    seeds = f" and {costs.num_seeds} seeds" if costs.num_seeds > 1 else ""
    rates = costs.target_tokens_per_second, costs.products.flops / costs.step_seconds / 1e9
    about = "at most about " if costs.meetings else ""
    yield (
        f"Speed       {about}{rates[0]:,.0f} target tokens/s, all devices{seeds}, padding not counted;"
        f" {figures(rates[1])} GFLOP/s in products on each"
    )
    seconds = duration(costs.num_steps * costs.step_seconds)
    epochs = costs.num_steps / costs.num_batches
    steps = counted(costs.num_steps, "step")
    about = "at least about " if costs.meetings else ""
    yield f"Time        {about}{seconds} for {steps} ({epochs:,.1f} epochs), evaluation not counted"


def _cost_row(
    name: str, row: ShapeCosts | Costs, share: float, footprint: Footprint | None, compile_seconds: float | None
) -> str:
    """One row of the table of `cost_lines`."""
    return (
        f"    {name:<12}{row.num_batches:>8,}{share:>8.1%}{row.padded_share:>9.1%}"
        f"{figures(row.products.flops / 1e9):>8}{megabytes(row.products.bytes):>12}"
        f"{megabytes(footprint.total) if footprint else '?':>11}"
        f"{figures(1e3 * row.step_seconds):>11}{'?' if compile_seconds is None else f'{compile_seconds:.1f}':>11}"
    )
