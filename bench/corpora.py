"""Expositions to measure with: three shapes, any size, the same on every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

MAX_FAMILIES = 19_000


def long_lines(_: int) -> Iterator[bytes]:
    """Istio's request metrics: 13 labels, some 430 bytes a line, 500 lines a family."""
    for family in range(10**6):
        name = b"istio_requests_%d_total" % family
        lines = [b"# TYPE %s counter\n" % name]
        lines += [
            b'%s{reporter="destination",source_workload="productpage-v%d",source_workload_namespace="default",'
            b'source_principal="spiffe://cluster.local/ns/default/sa/bookinfo-productpage",source_version="v%d",'
            b'destination_workload="reviews-v%d",destination_principal="spiffe://cluster.local/ns/default/sa/'
            b'bookinfo-reviews",destination_service="reviews-%d.default.svc.cluster.local",'
            b'request_protocol="http",response_code="%d",response_flags="-",connection_security_policy='
            b'"mutual_tls",path="C:\\\\dir"} %d\n' % (name, i % 3, i % 3, i % 7, i, 200 + i % 300, i * 7919)
            for i in range(500)
        ]
        yield b"".join(lines)


def short_lines(_: int) -> Iterator[bytes]:
    """One short label, some 25 bytes a line, 1,000 lines a family."""
    for family in range(10**6):
        name = b"jobs%d_total" % family
        lines = [b"# HELP %s Jobs done.\n# TYPE %s counter\n" % (name, name)]
        lines += [b'%s{i="%d"} %d\n' % (name, i, i * 31) for i in range(1000)]
        yield b"".join(lines)


def many_families(size: int) -> Iterator[bytes]:
    """A family (HELP, TYPE, three samples) for every 380 bytes, but no more families than the merge's limit:
    the families of larger bodies have more samples each."""
    families = min(size // 380 + 1, MAX_FAMILIES)
    samples = max(3, size // families // 62)
    for number in range(families):
        name = b"app_subsystem_metric_number_%d_total" % number
        lines = [b"# HELP %s The number of things that happened here.\n# TYPE %s counter\n" % (name, name)]
        lines += [b'%s{method="GET",code="%d"} %d.0\n' % (name, 200 + i, i * 997) for i in range(samples)]
        yield b"".join(lines)


def envoy_statistics(_: int) -> Iterator[bytes]:
    """Envoy's own: families of one line per cluster, then histograms with 20 buckets per cluster."""
    clusters = [
        b"outbound|8080||service-%05d.namespace-%d.svc.cluster.local" % (n, n % 40) for n in range(20)
    ]
    for family in range(10**6):
        if family % 40:
            name = b"envoy_cluster_statistic_number_%d" % family
            lines = [b"# TYPE %s counter\n" % name]
            lines += [b'%s{envoy_cluster_name="%s"} %d\n' % (name, one, family * 31) for one in clusters]
        else:
            name = b"envoy_cluster_time_number_%d" % family
            lines = [b"# TYPE %s histogram\n" % name]
            for one in clusters:
                bounds = [b"%g" % bound for bound in (0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)]
                lines += [
                    b'%s_bucket{envoy_cluster_name="%s",le="%s"} %d\n' % (name, one, bound, family)
                    for bound in [*bounds, b"+Inf"]
                ]
                lines += [
                    b'%s_%s{envoy_cluster_name="%s"} 7\n' % (name, end, one) for end in (b"sum", b"count")
                ]
        yield b"".join(lines)


def _repeated(line: bytes) -> Callable[[int], bytes]:
    return lambda size: line * (size // len(line))


def _numbered(line: bytes) -> Callable[[int], bytes]:
    """Return lines with another number each."""

    def lines(size: int) -> bytes:
        return b"".join(line.replace(b"%d", b"%d" % number) for number in range(size // len(line)))

    return lines


# Bodies of a size that a source may send; the merge should not spend more on them than on valid lines.
FLOODS: dict[str, Callable[[int], bytes]] = {
    "blank lines": _repeated(b"\n"),
    "comments": _repeated(b"# nothing to see here\n"),
    "malformed lines": _repeated(b"nothing to see here\n"),
    "malformed lines, as short as can be": _repeated(b"x\n"),
    "valid and malformed lines": _repeated(b"x 1\nx\n"),
    "a malformed line after 99 valid ones": _repeated(b"x 1\n" * 99 + b"x\n"),
    "blank and valid lines": _repeated(b"\nx 1\n"),
    "labels that repeat a name": _repeated(b'x{a="b",a="c"} 1\n'),
    "lines that are not UTF-8": _repeated(b'x{a="\xff"} 1\n'),
    "lines with two spaces": _repeated(b"x  1\n"),
    "lines of 33 labels": _repeated(b"x{%s} 1\n" % b",".join(b'l%d="v"' % n for n in range(33))),
    "lines of 200 kB": _repeated(b"x" * 200_000 + b"\n"),
    "one line without end": _repeated(b"x"),
    "repeated TYPE lines": _repeated(b"# TYPE x gauge\n"),
    "repeated TYPE lines between samples": _repeated(b"# TYPE x gauge\nx 1\n"),
    "two names in turn": _repeated(b"x 1\ny 1\n"),
    "a family in each line": _numbered(b"x%d 1\n"),
}

CORPORA: dict[str, Callable[[int], Iterator[bytes]]] = {
    "long lines": long_lines,
    "short lines": short_lines,
    "many families": many_families,
}


ENVOY = "Envoy's statistics"


def corpus(name: str, size: int) -> bytes:
    """At most `size` bytes of the named corpus, whole lines, close to it."""
    pieces: list[bytes] = []
    left = size
    for piece in (envoy_statistics if name == ENVOY else CORPORA[name])(size):
        if len(piece) > left:
            pieces.append(piece[: piece.rfind(b"\n", 0, left) + 1])
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
