"""Where a Matroska or WebM file's own structure is broken: FFmpeg goes on behind such a place without a word.

Elements as in RFC 8794 (EBML) and RFC 9559 (Matroska): an identifier, a size, a body.
"""

import mmap
from pathlib import Path

EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
TOP = {CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF}
TRACKS, TRACK, TRACK_NUMBER, SIMPLE_BLOCK, BLOCK_GROUP, BLOCK = 0x1654AE6B, 0xAE, 0xD7, 0xA3, 0xA0, 0xA1
IN_CLUSTER = {0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0xAF, 0x5854, 0xEC, 0xBF}
# identifier, where the body begins, its bytes (None: until an element of a higher level)
Element = tuple[int, int, int | None]


def is_matroska(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return head[:4] == EBML.to_bytes(4, "big")


def segment_end(path: Path) -> int:
    """The byte at which the file must end by its own account; 0 where it doesn't say."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        segment = _segment(data)
        return segment[1] + segment[2] if segment and segment[2] is not None else 0


def broken_places(path: Path) -> list[int]:
    """Bytes within the film at which something else lies than an element or a block of a track, ascending."""
    places: list[int] = []
    tracks: set[int] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        segment = _segment(data)
        at = len(data) if segment is None else segment[1]
        while at < len(data):
            element = _element(data, at)
            if element is not None and element[0] == CLUSTER:
                at, whole = _cluster_end(data, element, tracks)
            elif element is not None and element[0] in TOP and element[2] is not None:
                if element[0] == TRACKS:
                    tracks |= _track_numbers(data, element)
                at, whole = element[1] + element[2], True
            else:
                whole = False
            if not whole:
                more = data.find(CLUSTER.to_bytes(4, "big"), at + 1)
                if more < 0 and (element is None or element[0] != CLUSTER):
                    # what follows the last cluster is no film
                    break
                places.append(at)
                at = more if more >= 0 else len(data)
    return places


def _segment(data: mmap.mmap) -> Element | None:
    header = _element(data, 0)
    if header is None or header[2] is None:
        return None
    segment = _element(data, header[1] + header[2])
    return segment if segment is not None and segment[0] == SEGMENT else None


def _track_numbers(data: mmap.mmap, tracks: Element) -> set[int]:
    entries = [entry for entry in _children(data, tracks) if entry[0] == TRACK]
    numbers = [child for entry in entries for child in _children(data, entry) if child[0] == TRACK_NUMBER]
    return {int.from_bytes(data[at : at + (length or 0)], "big") for _, at, length in numbers}


def _children(data: mmap.mmap, parent: Element) -> list[Element]:
    children, at = [], parent[1]
    while at < parent[1] + (parent[2] or 0):
        child = _element(data, at)
        if child is None or child[2] is None:
            break
        children.append(child)
        at = child[1] + child[2]
    return children


def _cluster_end(data: mmap.mmap, cluster: Element, tracks: set[int]) -> tuple[int, bool]:
    """(where the cluster ends, True), or (where it is broken, False)."""
    _, at, length = cluster
    end = len(data) if length is None else min(at + length, len(data))
    while at < end:
        element = _element(data, at)
        if length is None and element is not None and element[0] in TOP - IN_CLUSTER:
            return at, True
        if element is None or element[2] is None or element[0] not in IN_CLUSTER:
            # a last element that was cut off is a matter of the file's end
            return at, at + 12 > len(data)
        blocks = [element] if element[0] == SIMPLE_BLOCK else []
        if element[0] == BLOCK_GROUP:
            blocks = [child for child in _children(data, element) if child[0] == BLOCK]
        if any(_number(data, block[1]) not in tracks for block in blocks):
            return at, False
        at = element[1] + element[2]
    return at, at == end or at >= len(data)


def _number(data: mmap.mmap, at: int) -> int | None:
    """A number whose leading zeros say how many bytes it has."""
    head = data[at : at + 8]
    wide = 9 - head[0].bit_length() if head else 9
    return int.from_bytes(head[:wide], "big") - (1 << 7 * wide) if wide <= len(head) else None


def _element(data: mmap.mmap, at: int) -> Element | None:
    head = data[at : at + 12]
    wide = 9 - head[0].bit_length() if head else 9
    if wide > 4 or len(head) <= wide:
        return None
    size = 9 - head[wide].bit_length()
    if size > 8 or len(head) < wide + size:
        return None
    value = int.from_bytes(head[wide : wide + size], "big") - (1 << 7 * size)
    known = value != (1 << 7 * size) - 1
    return int.from_bytes(head[:wide], "big"), at + wide + size, value if known else None
