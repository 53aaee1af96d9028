"""What Prometheus reads."""

from common.metrics import counts, exposition, gauge


def test_the_text_is_what_the_format_says() -> None:
    """Help, type and one line a value; labels quoted, whole numbers without a point."""
    answer = exposition(
        [
            counts("a_total", "Things.", "kind", {"y": 2, 'x "\n\\': 1}, role="r"),
            gauge("b", "A share.", 0.25),
            gauge("c", "A flag.", True),
            counts("d_total", "None yet.", "kind", {}),
        ]
    )
    assert answer.content_type == "text/plain"
    assert answer.body == (
        b"# HELP a_total Things.\n# TYPE a_total counter\n"
        b'a_total{role="r",kind="x \\"\\n\\\\"} 1\na_total{role="r",kind="y"} 2\n'
        b"# HELP b A share.\n# TYPE b gauge\nb 0.25\n"
        b"# HELP c A flag.\n# TYPE c gauge\nc 1\n"
        b"# HELP d_total None yet.\n# TYPE d_total counter\n"
    )
