"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from seq2seq_jax.serving.programs import Shape

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_LINES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "seq2seq_requests", "Requests, by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "seq2seq_request_seconds",
            "From a request to the end of its answer.",
            ["path"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.lines = Gauge("seq2seq_lines", "Texts that are taken and not yet answered.", registry=registry)
        self.tokens = Counter("seq2seq_tokens", "Tokens read and written.", ["side"], registry=registry)
        self.batch_lines = Histogram("seq2seq_batch_lines", "Texts of a batch.", registry=registry, buckets=_LINES)
        self.batch_rows = Counter(
            "seq2seq_batch_rows", "Rows of batches, those without a text included.", registry=registry
        )
        self.search_seconds = Histogram(
            "seq2seq_search_seconds", "Search of a batch.", registry=registry, buckets=_SECONDS
        )
        self.programs = Gauge("seq2seq_programs", "Compiled searches.", registry=registry)

    def batch(self, num_lines: int, shape: Shape, seconds: float) -> None:
        """Counts a batch that was searched."""
        self.batch_lines.observe(num_lines)
        self.batch_rows.inc(shape.rows)
        self.search_seconds.observe(seconds)

    def text(self) -> bytes:
        """Returns all of it as Prometheus reads it."""
        return generate_latest(self.registry)
