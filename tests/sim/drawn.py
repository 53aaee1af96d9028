"""Records as hypothesis draws them: whatever a sensor may send, on any clock."""

from hypothesis import strategies as st

from common.messages import Marker, Reading

NS = 1_000_000_000
INSTANTS_NS = st.integers(0, 4_000_000_000 * NS // 1000).map(lambda us: us * 1000)
WHOLE = "(0|[1-9][0-9]{0,9})"
SYNC_IDS = st.uuids(version=4).map(str)


def readings(seqs: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Reading]:
    return st.builds(
        Reading,
        seq=seqs if seqs is not None else st.integers(0, 2**53),
        epoch=st.integers(0, 100),
        mono_ns=st.integers(0, 2**63 - 1),
        utc_ns=INSTANTS_NS,
        sensor_id=st.from_regex(r"[!-+\--~]([ -+\--~]{0,20}[!-+\--~])?", fullmatch=True),
        mode=st.sampled_from(["freerun", "polled"]),
        value=st.from_regex(rf"-?{WHOLE}\.[0-9]{{1,8}}", fullmatch=True),
        temp_c=st.none() | st.from_regex(rf"-?{WHOLE}\.[0-9]{{2}}", fullmatch=True),
        vin=st.none() | st.from_regex(rf"{WHOLE}\.[0-9]{{3}}", fullmatch=True),
    )


def markers() -> st.SearchStrategy[Marker]:
    return st.builds(
        Marker,
        sync_id=SYNC_IDS,
        kind=st.sampled_from(["START", "PERIODIC", "STOP"]),
        sequence=st.integers(0, 10**6),
        epoch=st.integers(0, 100),
        mono_ns=st.integers(0, 2**63 - 1),
        utc_ns=INSTANTS_NS,
        after_seq=st.integers(-1, 2**53),
        t1_ns=st.none() | st.integers(-(2**63), 2**63 - 1),
        label=st.none() | st.text(max_size=50),
    )


def reading(seq: int, epoch: int = 0) -> Reading:
    """A plain one, for where only the number matters."""
    mono_ns = NS + seq * 111_000_000
    return Reading(
        seq, epoch, mono_ns, 1_780_000_000 * NS + mono_ns, "Q7799", "freerun", f"{seq}.5", "25.19", "7.494"
    )
