"""How long the steps of a run take on several nodes: an estimate from FLOPs and bandwidth."""

from dataclasses import dataclass

from mae_curriculum.curriculum.clock import Clock, Span, View
from mae_curriculum.evaluation.speedup import FlopsOfView

ASSUMPTIONS = (
    "assumed: compute goes with FLOPs, whatever the batch; float32 gradients are averaged once a step, by a ring over "
    "the nodes, after the backward pass; inside a node that takes no time; data comes in time"
)
"""What the estimate leaves out; each makes real steps faster or slower."""


@dataclass(frozen=True)
class Hardware:
    """What a plan assumes of the machines."""

    devices: int = 1
    """Number of processes that share each batch."""
    rate: float = 1000.0
    """Images/s of all devices together at full size, without communication between nodes."""
    nodes: int = 1
    """Number of machines with these devices."""
    bandwidth: float = 25.0
    """GB/s that a node sends, while it receives as much."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a model's steps: compute, and the all-reduce of the gradients; see `ASSUMPTIONS`."""

    flops: FlopsOfView
    gradient_bytes: int
    full: View
    """What the encoder sees without a curriculum."""
    hardware: Hardware

    def compute(self, span: Span) -> float:
        """Return the seconds of compute of a stage's step."""
        share = self.flops(span.view) / self.flops(self.full)
        return span.batch_images * share / self.hardware.rate

    @property
    def all_reduce(self) -> float:
        """Seconds in which the nodes average their gradients: in a ring of n, each sends 2 (n - 1) / n of their bytes.

        One node has 0, two send the gradients once, many almost twice.
        """
        nodes = self.hardware.nodes
        return 2 * (nodes - 1) / nodes * self.gradient_bytes / (1e9 * self.hardware.bandwidth)

    def run(self, clock: Clock) -> float:
        """Return the seconds of all steps of a run."""
        return sum(span.steps * (self.compute(span) + self.all_reduce) for span in clock.spans)
